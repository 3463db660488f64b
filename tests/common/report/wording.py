"""What every report says word for word, whatever its figures are."""

from collections.abc import Sequence
from typing import Any

from tacit_common.report import OperatingPoint, deployed, statements
from tacit_common.report.schema import Engine


def local_wording(
    *,
    unit: statements.Unit,
    cap: int | None,
    epsilon: float,
    delta: float,
    trade_off: Sequence[OperatingPoint],
    engine: Engine = "in-process",
    without_account: int = 0,
) -> dict[str, Any]:
    """The fields of `LocalPrivacy` that are sentences, of a study with probes."""
    is_deployed = engine == "deployed"
    return {
        "plain_statement": statements.local_plain_statement(
            epsilon=epsilon, delta=delta, unit=unit, trade_off=trade_off
        )
        + deployed.without_account_in_plain(without_account),
        "formal_statement": statements.local_formal_statement(
            epsilon=epsilon, delta=delta, unit=unit, records_per_subject=cap
        )
        + deployed.without_account_formally(without_account),
        "setting": statements.LOCAL_SETTING
        + (f" {deployed.LOCAL_TRANSPORT}" if is_deployed else ""),
        "accesses_covered": (
            *statements.local_accesses_covered(unit=unit, has_probes=True),
            *deployed.accesses_without_account(without_account),
        ),
        "accesses_excluded": (
            *statements.LOCAL_ACCESSES_EXCLUDED,
            *(() if is_deployed else statements.SIMULATION_ACCESSES_EXCLUDED),
        ),
        "outputs": (
            *statements.local_outputs(has_probes=True),
            *(deployed.OUTPUTS if is_deployed else ()),
        ),
        "unit": unit,
        "records_per_subject": cap,
        "adjacency": "zero-out",
        "adversary": statements.LOCAL_ADVERSARY,
        "transcript": statements.LOCAL_TRANSCRIPT,
        "sampler": statements.sampler(unit=unit),
        "noise": statements.NOISE,
        "floating_point": statements.FLOATING_POINT,
        "tuning": statements.TUNING,
        "not_covered": (
            *deployed.not_covered_without_account(without_account),
            *statements.local_not_covered(unit=unit),
            *(deployed.NOT_COVERED if is_deployed else statements.SIMULATION_NOT_COVERED),
        ),
    }


def none_wording(engine: Engine = "in-process") -> dict[str, Any]:
    """The same of `NoPrivacy`."""
    is_deployed = engine == "deployed"
    return {
        "plain_statement": statements.NO_DIFFERENTIAL_PRIVACY_PLAIN,
        "formal_statement": statements.NO_DIFFERENTIAL_PRIVACY_FORMAL,
        "setting": statements.NONE_SETTING + (f" {deployed.NONE_TRANSPORT}" if is_deployed else ""),
        "outputs": (
            *statements.none_outputs(has_probes=True),
            *(deployed.OUTPUTS if is_deployed else ()),
        ),
        "not_covered": statements.NONE_NOT_COVERED,
    }
