"""What the sites of a simulation hold, said before anything runs."""

import tempfile
from pathlib import Path

from tacit_client.units import Units
from tacit_common.report import numbers
from tacit_common.study import LocalPrivacyPlan, SimulationPlan, StudyFile
from tacit_simulations.sites import SimulatedSites


def held_units(study: StudyFile, plan: SimulationPlan) -> list[int]:
    """Number of units of privacy at each site, from data that is dealt out for this alone.

    Raises:
        DataError: the data set cannot be read.
        StudyError: it cannot be dealt out to so many sites.
    """
    privacy = study.privacy
    unit, cap = (
        (privacy.unit, privacy.records_per_subject)
        if isinstance(privacy, LocalPrivacyPlan)
        else ("record", None)
    )
    with tempfile.TemporaryDirectory() as folder:
        sites = SimulatedSites(study, plan, Path(folder))
        sites.prepare()
        return [len(Units.of(sites.source(index), unit, cap)) for index in range(plan.sites)]


def in_words(study: StudyFile, plan: SimulationPlan) -> str:
    """One sentence about what the sites hold, and whether they declare more than that."""
    held = held_units(study, plan)
    noun = study.privacy.unit if isinstance(study.privacy, LocalPrivacyPlan) else "record"
    fewest, most = numbers.count(min(held)), numbers.count(max(held))
    amount = fewest if fewest == most else f"{fewest} to {most}"
    said = f"{plan.sites} sites hold {amount} {noun}s each, {plan.declared_units} are declared"
    if max(held) < plan.declared_units:
        return f"{said}: more than any site holds, so every update comes out too small"
    if min(held) < plan.declared_units:
        return f"{said}; where fewer are held, updates weigh less than they could"
    return said
