"""What noise leaves of the signal: a heuristic for planning, never a privacy statement.

One step releases (Σ clipped gradients + σ·C·z) / (q·N), with z standard normal in P
coordinates (De et al. 2022, arXiv 2204.13650, section 2). The noise of that mean has

- standard deviation σ·C / (q·N) in each coordinate: the *effective noise*;
- length σ·C·√P / (q·N), while a mean of clipped gradients is no longer than C.

Over T steps the longest signal there can be, every gradient clipped and all of them in one
direction, grows with T, and the noise with √T. A mean over K sites divides the noise by √K.
The *run's signal-to-noise* is the quotient of the two,

    ρ = √(T·K)·q·N / (σ·√P) = √(2K/P)·N·η,    η = (q/σ)·√(T/2).

η is the signal-to-noise of Sander, Stock and Sablayrolles 2023 (arXiv 2210.03403, section 3),
the inverse of their *total amount of noise*. They show that ε depends on η alone while the
noise multiplier is large (above about 2), and that below it ε is overcharged: the same ε
then buys a smaller η. The largest η that (ε, δ) can buy is that of sampling at rate 1,
where T releases at σ are exactly one release at σ/√T, so η = 1/(√2·σ₁).

ρ is an upper bound on what training sees, because gradients neither all reach C nor agree.
ρ < 1 therefore says that the noise outweighs any signal; ρ > 1 promises nothing. It leaves
out the 1.6 % that the noise lattice adds, momentum, schedules, and parameters that never
need to move.
"""

import math
from typing import Literal

SOURCES = "De et al. 2022 (arXiv 2204.13650); Sander et al. 2023 (arXiv 2210.03403)"

CLEAR_SIGNAL = 10.0
"""From this ρ on, a plan is called feasible. ρ is an upper bound, and a rule of thumb of ours
leaves a factor of ten between the best case and the usual one."""

GOOD_SHARE = 0.9
"""A sampling rate that buys this share of the largest η is taken to be good enough: a higher
rate costs work in proportion and gains at most what is missing."""

Verdict = Literal["feasible", "marginal", "too_small"]


def total_signal(noise_multiplier: float, sampling_rate: float, steps: int) -> float:
    """η = (q/σ)·√(T/2): the inverse of the total amount of noise."""
    return sampling_rate / noise_multiplier * math.sqrt(steps / 2)


def effective_noise(noise_multiplier: float, expected_batch: float) -> float:
    """σ/(q·N): standard deviation of a coordinate of the mean gradient, in units of C."""
    return noise_multiplier / expected_batch


def step_signal_to_noise(
    noise_multiplier: float, expected_batch: float, *, parameters: int, sites: int = 1
) -> float:
    """q·N·√K / (σ·√P): the clip norm over the length of the noise, in one step."""
    return expected_batch * math.sqrt(sites / parameters) / noise_multiplier


def run_signal_to_noise(
    noise_multiplier: float, expected_batch: float, *, steps: int, parameters: int, sites: int = 1
) -> float:
    """ρ: the longest signal of a whole run over the length of its noise."""
    one = step_signal_to_noise(noise_multiplier, expected_batch, parameters=parameters, sites=sites)
    return math.sqrt(steps) * one


def largest_model(
    noise_multiplier: float, expected_batch: float, *, steps: int, sites: int = 1
) -> int:
    """The most parameters for which ρ is at least 1."""
    return math.floor(steps * sites * (expected_batch / noise_multiplier) ** 2)


def judge(run_snr: float) -> Verdict:
    """What ρ says of a plan."""
    if run_snr < 1:
        return "too_small"
    return "feasible" if run_snr >= CLEAR_SIGNAL else "marginal"


def predicted_noise(sampling_rate: float, steps: int, gaussian_sigma: float) -> float:
    """About the σ that a rate will need, by the central limit theorem.

    `gaussian_sigma` is σ₁, the noise of one release at the same (ε, δ); σ solves
    1/σ₁ = q·√(T·(e^{1/σ²} − 1)) (Bu, Dong, Long and Su 2020, arXiv 1911.11607, theorem 5).
    Used only to choose which rates to compare.
    """
    return 1 / math.sqrt(math.log1p((gaussian_sigma * sampling_rate) ** -2 / steps))
