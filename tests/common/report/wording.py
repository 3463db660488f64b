"""What every local report says word for word, whatever its figures are."""

from collections.abc import Sequence
from typing import Any

from tacit_common.report import OperatingPoint, statements


def local_wording(
    *,
    unit: statements.Unit,
    cap: int | None,
    epsilon: float,
    delta: float,
    trade_off: Sequence[OperatingPoint],
) -> dict[str, Any]:
    """The fields of `LocalPrivacy` that are sentences, of a simulated study with probes."""
    return {
        "plain_statement": statements.local_plain_statement(
            epsilon=epsilon, delta=delta, unit=unit, trade_off=trade_off
        ),
        "formal_statement": statements.local_formal_statement(
            epsilon=epsilon, delta=delta, unit=unit, records_per_subject=cap
        ),
        "setting": statements.LOCAL_SETTING,
        "accesses_covered": statements.local_accesses_covered(unit=unit, has_probes=True),
        "accesses_excluded": (
            *statements.LOCAL_ACCESSES_EXCLUDED,
            *statements.SIMULATION_ACCESSES_EXCLUDED,
        ),
        "outputs": statements.local_outputs(has_probes=True),
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
            *statements.local_not_covered(unit=unit),
            *statements.SIMULATION_NOT_COVERED,
        ),
    }


def none_wording() -> dict[str, Any]:
    """The same of `NoPrivacy`."""
    return {
        "plain_statement": statements.NO_DIFFERENTIAL_PRIVACY_PLAIN,
        "formal_statement": statements.NO_DIFFERENTIAL_PRIVACY_FORMAL,
        "outputs": statements.none_outputs(has_probes=True),
        "not_covered": statements.NONE_NOT_COVERED,
    }
