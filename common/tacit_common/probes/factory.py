"""From a probe's plan to the probe."""

from tacit_common.plugins import PluginTable, require
from tacit_common.probes.contract import Probe
from tacit_common.probes.ridge import RidgeProbe
from tacit_common.study import ProbePlan, RidgeProbePlan


def build_probe(plan: ProbePlan, plugins: PluginTable) -> Probe:
    """The probe that `plan` describes.

    Raises:
        PluginError: the plug-in is not configured here, or is no `Probe`.
    """
    if isinstance(plan, RidgeProbePlan):
        return RidgeProbe(plan.classes)
    candidate = plugins.create(plan, "probe")
    return require(candidate, Probe, plan.name)
