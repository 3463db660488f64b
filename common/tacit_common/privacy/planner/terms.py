"""The terms of a plan: turns a number of rounds and a sampling rate into a row of the table."""

import math

from tacit_common.errors import PrivacyConfigError
from tacit_common.privacy.accounting import (
    PLANNING_INTERVAL,
    REPORT_INTERVAL,
    gaussian_noise_multiplier,
)
from tacit_common.privacy.events import GaussianRelease
from tacit_common.privacy.plan import (
    check_room_for_training,
    expected_batch,
    least_noise,
    probe_noise_multiplier,
)
from tacit_common.privacy.planner import signal_to_noise as heuristic
from tacit_common.privacy.planner.declared import proposed_delta
from tacit_common.privacy.planner.figures import Alternative, PlanRequest


class Terms:
    """A request with its δ and probes settled: turns (rounds, rate) into a row."""

    def __init__(self, request: PlanRequest) -> None:
        self.request = request
        self.delta = request.delta if request.delta is not None else proposed_delta(request.units)
        self.probes = tuple(
            GaussianRelease(noise_multiplier=probe_noise_multiplier(eps, self.delta))
            for eps in request.probe_epsilons
        )
        check_room_for_training(self.probes, request.epsilon, self.delta)
        # Gaussian releases compose exactly: what the probes leave buys one release of σ₁.
        self.gaussian_sigma = gaussian_noise_multiplier(request.epsilon, self.delta)
        room = self.gaussian_sigma**-2 - sum(p.noise_multiplier**-2 for p in self.probes)
        self.best_signal = math.sqrt(max(room, 1e-300) / 2)

    def noise(
        self, sampling_rate: float, steps: int, *, exact: bool = False
    ) -> tuple[float, float]:
        """σ and ε of the run: as a study would have them, or found on a coarser grid.

        Raises:
            PrivacyConfigError: no noise is enough.
        """
        interval = REPORT_INTERVAL if exact else self.interval(steps)
        return least_noise(
            self.probes, sampling_rate, steps, self.request.epsilon, self.delta, interval
        )

    def interval(self, steps: int) -> float:
        """The coarsest grid of privacy losses that is accurate for so many steps.

        Rounding losses up to a grid adds a variance of about interval²/7 in each step to a
        total of about 1/σ₁²: this keeps the error in ε below 0.3 %.
        """
        coarse = steps * PLANNING_INTERVAL**2 < 0.025 * self.gaussian_sigma**-2
        return PLANNING_INTERVAL if coarse else REPORT_INTERVAL

    def row(self, rounds: int, sampling_rate: float, *, exact: bool = False) -> Alternative:
        request, steps = self.request, rounds * self.request.local_steps
        batch = expected_batch(request.records, sampling_rate)
        same = {"rounds": rounds, "steps": steps, "sampling_rate": sampling_rate}
        try:
            sigma, planned = self.noise(sampling_rate, steps, exact=exact)
        except PrivacyConfigError as error:
            return Alternative.model_validate(
                dict.fromkeys(Alternative.model_fields)
                | same
                | {"expected_batch": batch, "recommended": False, "problem": error.why}
            )
        signal = heuristic.total_signal(sigma, sampling_rate, steps)
        clip = 1.0 if request.l2_clip_norm is None else request.l2_clip_norm
        step_snr = run_snr = None
        if request.parameters is not None:
            step_snr = heuristic.step_signal_to_noise(
                sigma, batch, parameters=request.parameters, sites=request.sites
            )
            run_snr = step_snr * math.sqrt(steps)
        return Alternative(
            rounds=rounds,
            steps=steps,
            sampling_rate=sampling_rate,
            expected_batch=batch,
            noise_multiplier=sigma,
            epsilon=planned,
            total_signal=signal,
            share_of_best=min(1.0, signal / self.best_signal),
            effective_noise=heuristic.effective_noise(sigma, batch) * clip,
            step_signal_to_noise=step_snr,
            run_signal_to_noise=run_snr,
            largest_model=heuristic.largest_model(sigma, batch, steps=steps, sites=request.sites),
            recommended=False,
            problem=None,
        )
