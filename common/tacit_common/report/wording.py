"""The sentences of a local report that follow from its figures: for writer and verifier.

A sentence that is added here is both written into reports and said again by the verifier.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from tacit_common.report import statements
from tacit_common.report.claims import OperatingPoint


@dataclass(frozen=True)
class LocalWording:
    """The sentences of `LocalPrivacy`, of a simulated run; fields are named as there."""

    plain_statement: str
    formal_statement: str
    setting: str
    adversary: str
    transcript: str
    sampler: str
    noise: str
    floating_point: str
    tuning: str
    accesses_covered: tuple[str, ...]
    outputs: tuple[str, ...]
    accesses_excluded: tuple[str, ...]
    not_covered: tuple[str, ...]

    @classmethod
    def of(
        cls,
        *,
        epsilon: float,
        delta: float,
        unit: statements.Unit,
        records_per_subject: int | None,
        trade_off: Sequence[OperatingPoint],
        has_probes: bool,
    ) -> Self:
        """The sentences that belong to these figures."""
        return cls(
            plain_statement=statements.local_plain_statement(
                epsilon=epsilon, delta=delta, unit=unit, trade_off=trade_off
            ),
            formal_statement=statements.local_formal_statement(
                epsilon=epsilon,
                delta=delta,
                unit=unit,
                records_per_subject=records_per_subject,
            ),
            setting=statements.LOCAL_SETTING,
            adversary=statements.LOCAL_ADVERSARY,
            transcript=statements.LOCAL_TRANSCRIPT,
            sampler=statements.sampler(unit=unit),
            noise=statements.NOISE,
            floating_point=statements.FLOATING_POINT,
            tuning=statements.TUNING,
            accesses_covered=statements.local_accesses_covered(unit=unit, has_probes=has_probes),
            outputs=statements.local_outputs(has_probes=has_probes),
            accesses_excluded=(
                *statements.LOCAL_ACCESSES_EXCLUDED,
                *statements.SIMULATION_ACCESSES_EXCLUDED,
            ),
            not_covered=(
                *statements.local_not_covered(unit),
                *statements.SIMULATION_NOT_COVERED,
            ),
        )
