"""The sentences of a report that follow from its figures: for writer and verifier.

A sentence that is added here is both written into reports and said again by the verifier.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from tacit_common.report import deployed, statements
from tacit_common.report.claims import OperatingPoint
from tacit_common.report.schema import Engine


@dataclass(frozen=True)
class LocalWording:
    """The sentences of `LocalPrivacy`; fields are named as there."""

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
        engine: Engine,
        without_account: int,
    ) -> Self:
        """The sentences that belong to these figures.

        `without_account` is the number of sites that gave none.
        """
        is_deployed = engine == "deployed"
        plain = statements.local_plain_statement(
            epsilon=epsilon, delta=delta, unit=unit, trade_off=trade_off
        )
        formal = statements.local_formal_statement(
            epsilon=epsilon, delta=delta, unit=unit, records_per_subject=records_per_subject
        )
        transport = f" {deployed.LOCAL_TRANSPORT}" if is_deployed else ""
        return cls(
            plain_statement=plain + deployed.without_account_in_plain(without_account),
            formal_statement=formal + deployed.without_account_formally(without_account),
            setting=statements.LOCAL_SETTING + transport,
            adversary=statements.LOCAL_ADVERSARY,
            transcript=statements.LOCAL_TRANSCRIPT,
            sampler=statements.sampler(unit=unit),
            noise=statements.NOISE,
            floating_point=statements.FLOATING_POINT,
            tuning=statements.TUNING,
            accesses_covered=(
                *statements.local_accesses_covered(unit=unit, has_probes=has_probes),
                *deployed.accesses_without_account(without_account),
            ),
            outputs=(
                *statements.local_outputs(has_probes=has_probes),
                *(deployed.OUTPUTS if is_deployed else ()),
            ),
            accesses_excluded=(
                *statements.LOCAL_ACCESSES_EXCLUDED,
                *(() if is_deployed else statements.SIMULATION_ACCESSES_EXCLUDED),
            ),
            not_covered=(
                *deployed.not_covered_without_account(without_account),
                *statements.local_not_covered(unit),
                *(deployed.NOT_COVERED if is_deployed else statements.SIMULATION_NOT_COVERED),
            ),
        )


@dataclass(frozen=True)
class NoneWording:
    """The sentences of `NoPrivacy`; fields are named as there."""

    plain_statement: str
    formal_statement: str
    setting: str
    outputs: tuple[str, ...]
    not_covered: tuple[str, ...]

    @classmethod
    def of(cls, *, has_probes: bool, engine: Engine) -> Self:
        """The sentences of a run without differential privacy."""
        is_deployed = engine == "deployed"
        transport = f" {deployed.NONE_TRANSPORT}" if is_deployed else ""
        return cls(
            plain_statement=statements.NO_DIFFERENTIAL_PRIVACY_PLAIN,
            formal_statement=statements.NO_DIFFERENTIAL_PRIVACY_FORMAL,
            setting=statements.NONE_SETTING + transport,
            outputs=(
                *statements.none_outputs(has_probes=has_probes),
                *(deployed.OUTPUTS if is_deployed else ()),
            ),
            not_covered=statements.NONE_NOT_COVERED,
        )
