"""How a report writes numbers: one rule for each kind of figure."""

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal

THIN_SPACE = "\u202f"  # narrow, and no line break at it
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SMALL_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve".split()  # noqa: SIM905
)


def epsilon(value: float) -> str:
    """ε with three significant digits, rounded up: it is a bound."""
    if value == 0:
        return "0"
    exact = Decimal(value) * (1 - Decimal("1e-12"))  # 0.1 + 0.2 is not more than 0.3
    return _significant(exact, digits=3, rounding=ROUND_CEILING)


def at_least(value: float) -> str:
    """What is left of a budget, rounded down: "1.58", "12.3", "140"."""
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    floor = Decimal(value).quantize(Decimal(1).scaleb(-decimals), rounding=ROUND_FLOOR)
    return f"{floor:,f}"


def significant(value: float, digits: int = 3) -> str:
    """`value` with that many significant digits, without an exponent."""
    if value == 0:
        return "0"
    return _significant(Decimal(value), digits=digits, rounding=ROUND_HALF_EVEN)


def _significant(value: Decimal, *, digits: int, rounding: str) -> str:
    for _ in range(2):  # a second time if rounding made 9.996 into 10.00
        step = Decimal(1).scaleb(min(0, value.adjusted() - digits + 1))
        value = value.quantize(step, rounding=rounding)
    return f"{value:,f}"


def percent(share: float) -> str:
    """A share in [0, 1] as a percentage with one decimal."""
    return f"{100 * share:.1f}{THIN_SPACE}%"


def short_percent(share: float) -> str:
    """A round share as a percentage: "0.001 %", "30 %"."""
    digits = f"{100 * share:.8f}".rstrip("0").rstrip(".")
    return f"{digits}{THIN_SPACE}%"


def percent_at_most(share: float) -> str:
    """A bound on a share, rounded up, with as many nines as it takes to stay below 100 %."""
    return f"{out_of_hundred_at_most(share)}{THIN_SPACE}%"


def out_of_hundred_at_most(share: float) -> str:
    """The same out of a hundred: '31.4', '99.98'."""
    exact = Decimal(share) * 100
    for decimals in (1, 2, 3, 4):
        rounded = exact.quantize(Decimal(1).scaleb(-decimals), rounding=ROUND_CEILING)
        if rounded < 100:
            return str(rounded)
    return "100"


def one_in(share: float) -> str:
    """A small share as '1 in 1,000', never shown smaller than it is."""
    return f"1 in {count(max(1, math.floor(1 / share * (1 + 1e-9))))}"


def power(value: float) -> str:
    """A small number such as δ: 10⁻⁵, 3.2 × 10⁻⁶."""
    mantissa, exponent = f"{value:.2e}".split("e")
    ten = "10" + str(int(exponent)).translate(SUPERSCRIPTS)
    mantissa = mantissa.rstrip("0").rstrip(".")
    return ten if mantissa == "1" else f"{mantissa} × {ten}"


def count(value: int) -> str:
    """A whole number with its thousands apart."""
    return f"{value:,}"


def in_words(value: int) -> str:
    """A count at the start of a sentence: "Five", "13"."""
    return SMALL_NUMBERS[value].capitalize() if value < len(SMALL_NUMBERS) else count(value)


def duration(seconds: float) -> str:
    """Seconds as a person would say them: 4.2 s, 3 min 12 s, 1 h 02 min."""
    if seconds < 59.95:
        return f"{seconds:.1f}{THIN_SPACE}s"
    minutes, rest = divmod(math.floor(seconds + 0.5), 60)
    if minutes < 60:
        return f"{minutes}{THIN_SPACE}min {rest:02}{THIN_SPACE}s"
    hours, minutes = divmod(minutes, 60)
    return f"{count(hours)}{THIN_SPACE}h {minutes:02}{THIN_SPACE}min"
