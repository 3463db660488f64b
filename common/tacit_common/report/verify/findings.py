"""What a check of a report found: the field, what it states, and what it should state."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tacit_common.privacy.accounting import REPORT_INTERVAL


@dataclass(frozen=True)
class Finding:
    """One field that does not hold.

    `path` names it as in `sites[2].epsilon_total`.
    """

    path: str
    stated: str
    recomputed: str


@dataclass(frozen=True)
class Check:
    """A group of fields that were looked at together.

    `claim` says in plain words what holds if there is no finding; `note` what the reader
    has to know besides.
    """

    name: str
    claim: str
    findings: tuple[Finding, ...] = ()
    note: str | None = None

    @property
    def holds(self) -> bool:
        """Whether every field of the group is as recomputed."""
        return not self.findings


@dataclass(frozen=True)
class Tolerance:
    """How far a stated figure may lie from the recomputed one."""

    relative: float
    absolute: float

    def allows(self, stated: float, recomputed: float) -> bool:
        """Whether the two are the same figure; two infinities never are."""
        return math.isfinite(stated) and math.isclose(
            stated, recomputed, rel_tol=self.relative, abs_tol=self.absolute
        )


ARITHMETIC = Tolerance(relative=1e-9, absolute=0.0)
"""For the same arithmetic done again: the last bits of a float may differ between machines."""

GRID = Tolerance(relative=1e-5, absolute=REPORT_INTERVAL)
"""For ε by PLD: one step of the grid of losses, which is wider for larger ε. Fourier transforms
of two machines differ in their last bits, and a mass near 10⁻¹⁵ can fall to the next step."""

RATE = Tolerance(relative=1e-5, absolute=2e-14)
"""For the rates of the trade-off, for the same reason. The smallest rate is near 10⁻¹²."""

NOT_THERE = "nothing"


@dataclass
class Comparison:
    """Collects what differs while a check goes through its fields."""

    findings: list[Finding] = field(default_factory=list)

    def same(self, path: str, stated: object, recomputed: object) -> None:
        """For text, counts and hashes: equal, or a finding."""
        if stated != recomputed:
            self.differs(path, stated, recomputed)

    def near(
        self, path: str, stated: float | None, recomputed: float | None, tolerance: Tolerance
    ) -> None:
        """For figures: both absent, or near each other."""
        if stated is None or recomputed is None:
            self.same(path, stated, recomputed)
        elif not tolerance.allows(stated, recomputed):
            self.differs(path, stated, recomputed)

    def at_most(self, path: str, stated: float, bound: float, tolerance: Tolerance) -> None:
        """For figures that have an upper bound."""
        if not (stated <= bound or tolerance.allows(stated, bound)):
            self.differs(path, stated, f"at most {_text(bound)}")

    def at_least(self, path: str, stated: float, bound: float, tolerance: Tolerance) -> None:
        """For figures that have a lower bound."""
        if not (stated >= bound or tolerance.allows(stated, bound)):
            self.differs(path, stated, f"at least {_text(bound)}")

    def sequences(self, path: str, stated: Sequence[object], recomputed: Sequence[object]) -> None:
        """For lists: each item by its own path, and nothing missing or left over."""
        for i in range(max(len(stated), len(recomputed))):
            left = stated[i] if i < len(stated) else NOT_THERE
            right = recomputed[i] if i < len(recomputed) else NOT_THERE
            self.same(f"{path}[{i}]", left, right)

    def differs(self, path: str, stated: object, recomputed: object) -> None:
        """Note a finding."""
        self.findings.append(Finding(path, _text(stated), _text(recomputed)))

    def check(self, name: str, claim: str, note: str | None = None) -> Check:
        """What was found, as a check."""
        return Check(name, claim, tuple(self.findings), note)


def _text(value: object) -> str:
    if value is None:
        return NOT_THERE
    if isinstance(value, (tuple, list, set, frozenset)):
        return ", ".join(sorted(map(_text, value))) or NOT_THERE
    return repr(value) if isinstance(value, float) else str(value)


def all_hold(checks: Iterable[Check]) -> bool:
    """Whether nothing was found at all."""
    return all(check.holds for check in checks)
