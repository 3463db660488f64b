"""What is to be said of a plan: one plain sentence for each finding."""

from collections.abc import Iterator
from dataclasses import replace

from tacit_common.privacy.planner.declared import proposed_delta, rounded_down
from tacit_common.privacy.planner.figures import Alternative, Feasibility, Finding, PlanRequest
from tacit_common.privacy.planner.numbers import short
from tacit_common.privacy.planner.signal_to_noise import CLEAR_SIGNAL, GOOD_SHARE, SOURCES

HEURISTIC = (
    "Signal-to-noise is a heuristic, not a guarantee: the longest signal that a run could "
    "have (every gradient clipped, all in one direction) over the length of its noise, "
    "sqrt(T K) q N / (sigma sqrt(P)) for T steps, K sites and P parameters. Below 1 the noise "
    f"outweighs any signal; a plan is called feasible from {CLEAR_SIGNAL:.0f} on. Sources: "
    f"{SOURCES}."
)

_OVERCHARGED_BELOW = 2.0  # noise multiplier; Sander et al. 2023, section 3
_UNITS = {"record": "records", "subject": "subjects"}


def findings(
    request: PlanRequest, delta: float, rows: list[Alternative], feasibility: Feasibility
) -> list[Finding]:
    """All findings, problems first."""
    best = next((row for row in rows if row.recommended), None)
    found = [
        *_about_delta(request, delta),
        *_about_feasibility(request, feasibility, best),
        *_about_rows(request, rows),
        *_about_the_best(best),
        *_about_declaring(request),
    ]
    return sorted(found, key=lambda finding: ("problem", "warning", "note").index(finding.kind))


def delta_is_sound(request: PlanRequest) -> bool:
    """Whether the request's δ is below one over the units of all sites."""
    return request.delta is None or request.delta * request.units < 1


def _about_delta(request: PlanRequest, delta: float) -> Iterator[Finding]:
    units = request.units
    if not delta_is_sound(request):
        yield Finding(
            kind="problem",
            text=f"δ = {delta:g} is no less than one over the {units:,} {_UNITS[request.unit]} of "
            "all sites: publishing one of them in the clear would pass. Choose δ well below "
            f"{1 / units:.1g}.",
        )
    elif request.delta is None:
        yield Finding(
            kind="warning",
            text=f"δ = {delta:g} is a proposal (the largest power of ten at most a tenth of one "
            f"over all {units:,} {_UNITS[request.unit]}); the study has to write δ down.",
        )
    elif delta * units > 0.1:
        yield Finding(
            kind="warning",
            text=f"δ = {delta:g} is above a tenth of one over the {units:,} "
            f"{_UNITS[request.unit]} of all sites; well below {1 / units:.1g} is usual.",
        )


def _about_feasibility(
    request: PlanRequest, feasibility: Feasibility, best: Alternative | None
) -> Iterator[Finding]:
    if feasibility.verdict == "impossible" or best is None:
        yield Finding(
            kind="problem",
            text=f"No noise multiplier up to 10,000 keeps ε = {request.epsilon:g} at any of these "
            f"sampling rates. ε = {feasibility.least_epsilon:g} could be kept; so could fewer "
            "rounds or a lower rate.",
        )
        return
    ratio, parameters = feasibility.run_signal_to_noise, request.parameters
    if ratio is None or parameters is None:
        yield Finding(
            kind="note",
            text="The noise outweighs any signal in a model of more than "
            f"{short(best.largest_model or 0)} trained parameters. Give --parameters for a "
            "verdict.",
        )
        return
    said = f"{short(ratio)} for {parameters:,} parameters"
    if feasibility.verdict == "too_small":
        yield Finding(
            kind="problem",
            text=f"Too small: the run's signal-to-noise is at most {said}, so the noise outweighs "
            f"any signal. What would reach 1: {_ways_out(request, feasibility, best)}.",
        )
    elif feasibility.verdict == "marginal":
        yield Finding(
            kind="warning",
            text=f"Marginal: the run's signal-to-noise is at most {said}. Expect little more than "
            "the start of training gives, unless it begins from a warm start.",
        )
    else:
        yield Finding(kind="note", text=f"Feasible: the run's signal-to-noise is at most {said}.")


def _ways_out(request: PlanRequest, feasibility: Feasibility, best: Alternative) -> str:
    unit = _UNITS[request.unit]
    ways = []
    if feasibility.least_records is not None:
        ways.append(
            f"{feasibility.least_records:,} {unit} in each site at sampling rate "
            f"{best.sampling_rate:.3g}"
            + _other_delta(replace(request, records=feasibility.least_records))
        )
    if feasibility.least_sites is not None:
        ways.append(
            f"{feasibility.least_sites:,} sites of {request.records:,} {unit}"
            + _other_delta(replace(request, sites=feasibility.least_sites))
        )
    if feasibility.least_epsilon is not None:
        ways.append(f"ε = {feasibility.least_epsilon:g} with what there is")
    ways.append(f"at most {best.largest_model or 0:,} trained parameters")
    return "; or ".join(ways)


def _other_delta(wanted: PlanRequest) -> str:
    """Advice for so many units holds at this δ, where the one that was given is too large."""
    return "" if delta_is_sound(wanted) else f" (and δ = {proposed_delta(wanted.units):g})"


def _about_rows(request: PlanRequest, rows: list[Alternative]) -> Iterator[Finding]:
    unit = _UNITS[request.unit]
    for row in rows:
        if row.problem is not None and any(other.problem is None for other in rows):
            yield Finding(
                kind="warning",
                text=f"{row.rounds:,} rounds at sampling rate {row.sampling_rate:.3g} cannot keep "
                f"ε = {request.epsilon:g}: {row.problem}.",
            )
    for rate in sorted({row.sampling_rate for row in rows if row.expected_batch < 1}):
        yield Finding(
            kind="problem",
            text=f"Sampling rate {rate:.3g} of {request.records:,} {unit} is less than one in a "
            f"step: most steps see nobody. Raise the rate to {1 / request.records:.2g} or more, "
            f"or declare {_ceil_one_over(rate):,} {unit}.",
        )


def _about_the_best(best: Alternative | None) -> Iterator[Finding]:
    if best is None or best.noise_multiplier is None or best.share_of_best is None:
        return
    if best.sampling_rate == 1:
        yield Finding(
            kind="note",
            text="Every step takes every unit: no lower rate among these buys as much.",
        )
        return
    share = f"{best.share_of_best:.0%} of the signal that ε could buy at sampling rate 1"
    if best.share_of_best >= GOOD_SHARE:
        yield Finding(
            kind="note",
            text=f"Sampling rate {best.sampling_rate:.3g} (batch {short(best.expected_batch)}) "
            f"buys {share}; a higher rate costs more work and gains at most the rest.",
        )
    else:
        low = best.noise_multiplier < _OVERCHARGED_BELOW
        yield Finding(
            kind="warning",
            text=f"The best of these rates buys {share}"
            + (": with a noise multiplier below 2, ε is overcharged." if low else ".")
            + " A higher rate, or more rounds, would use ε better.",
        )


def _about_declaring(request: PlanRequest) -> Iterator[Finding]:
    if request.records != rounded_down(request.records):
        yield Finding(
            kind="warning",
            text=f"{request.records:,} looks like a count. A site declares a public number below "
            f"its count, for example {rounded_down(request.records):,}, so that one "
            f"{request.unit} more or less changes nothing.",
        )
    if request.records_per_subject is not None:
        yield Finding(
            kind="note",
            text=f"A subject counts once, with at most {request.records_per_subject:,} records in "
            "a step: the cap changes the work, not the noise.",
        )


def _ceil_one_over(rate: float) -> int:
    return -int(-1 // rate)
