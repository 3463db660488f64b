"""How a plan writes its figures: few digits, and bounds rounded up."""

import math


def bound(epsilon: float, digits: int = 4) -> str:
    """ε with so many significant digits, rounded up: it is a bound."""
    step = 10.0 ** (math.floor(math.log10(epsilon)) - digits + 1)
    return f"{math.ceil(epsilon / step - 1e-9) * step:#.{digits}g}".rstrip(".")


def short(value: float) -> str:
    """A figure in at most seven letters."""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= limit:
            return f"{value / limit:.3g} {letter}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
