"""The recommended schedule under each mode of privacy, also those that are yet to come."""

from tacit_common.errors import PrivacyConfigError
from tacit_common.privacy.planner import signal_to_noise as heuristic
from tacit_common.privacy.planner.figures import Alternative, ModeFigures
from tacit_common.privacy.planner.terms import Terms

_LATER = "Needs secure aggregation, which this release does not have"


def under_each_mode(terms: Terms, best: Alternative) -> list[ModeFigures]:
    """The recommended rate and rounds under `local`, `distributed`, `site` and `none`.

    Under `distributed` and `site` a round is one release over all sites, and the noise is
    central. Probes, if any, are counted at their noise multipliers under each mode.
    """
    unit = terms.request.unit
    local = ModeFigures(
        mode="local",
        available=True,
        protects=f"a {unit} of one site, from everybody else",
        releases=best.steps,
        sampling_rate=best.sampling_rate,
        expected_batch=best.expected_batch,
        noise_multiplier=best.noise_multiplier,
        epsilon=best.epsilon,
        run_signal_to_noise=best.run_signal_to_noise,
        note="each site adds its own noise; signal-to-noise is of the mean over all sites",
    )
    nothing = {"noise_multiplier": None, "epsilon": None, "run_signal_to_noise": None}
    distributed = local.model_copy(
        update=nothing
        | {
            "mode": "distributed",
            "available": False,
            "protects": f"a {unit} of any site, from the server and everybody else",
            "releases": best.rounds,
            "expected_batch": best.expected_batch * terms.request.sites,
            "note": f"one clipped gradient sum a round over all sites, central σ. {_LATER}",
        }
    )
    site = distributed.model_copy(
        update={
            "mode": "site",
            "protects": "a whole site, from the server and everybody else",
            "sampling_rate": 1.0,
            "expected_batch": float(terms.request.sites),
            "note": "one clipped update of each site a round, no amplification by sampling. "
            f"{_LATER}",
        }
    )
    none = local.model_copy(
        update=nothing | {"mode": "none", "protects": "nothing", "note": "no differential privacy"}
    )
    return [local, _with_central_noise(distributed, terms), _with_central_noise(site, terms), none]


def _with_central_noise(mode: ModeFigures, terms: Terms) -> ModeFigures:
    """The mode with the noise that keeps ε, if any does."""
    try:
        sigma, planned = terms.noise(mode.sampling_rate, mode.releases)
    except PrivacyConfigError:
        return mode
    snr = None
    if terms.request.parameters is not None:
        snr = heuristic.run_signal_to_noise(
            sigma, mode.expected_batch, steps=mode.releases, parameters=terms.request.parameters
        )
    return mode.model_copy(
        update={"noise_multiplier": sigma, "epsilon": planned, "run_signal_to_noise": snr}
    )
