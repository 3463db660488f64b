"""Numbers that a person writes down once, before anything is computed from them."""


def rounded_down(count: int) -> int:
    """`count` with its first two digits kept and the others zero: a number fit to declare.

    Guarantees: at most `count`, above 90 % of it, and the same for all counts that share
    their length and first two digits. Somewhere two neighbouring counts differ, so a person
    declares the number once; nothing recomputes it when records come and go.
    """
    step: int = 10 ** max(0, len(str(count)) - 2)
    return count // step * step


def proposed_delta(units: int) -> float:
    """The largest power of ten that is at most 1 / (10·units).

    A mechanism that publishes one unit in the clear, drawn at random, is (0, 1/units)-DP, so
    δ has to be well below that. It is a proposal: the study writes δ down.
    """
    exponent = len(str(10 * units - 1))  # ⌈log₁₀(10·units)⌉, in whole numbers
    return float(f"1e-{exponent}")
