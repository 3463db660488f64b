"""The main job: a whole study over simulated sites, from data to report.

    prepare the folder → deal out the data → run the rounds → evaluate → report

Every stage can be killed and taken up again: what is in the folder is not done twice.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch

from tacit_client.data import LabeledArraySource
from tacit_client.gate import require_separable
from tacit_client.probe import require_labels
from tacit_common.errors import StudyError, UsageError
from tacit_common.files import locked_folder, write_atomically
from tacit_common.identity import Identity
from tacit_common.model import build_model, memory_of
from tacit_common.plugins import PluginTable
from tacit_common.privacy.plan import calibrate
from tacit_common.privacy.separability import Certificates
from tacit_common.report import Report, write_report
from tacit_common.study import LocalPrivacyPlan, SimulationPlan, StudyFile
from tacit_common.study_file import load_study
from tacit_server.probes import LabeledRecords
from tacit_server.run import Coordinator, RunFolder
from tacit_server.run_log import Watcher
from tacit_simulations.audit_record import read_audit
from tacit_simulations.datasets import LabeledImages
from tacit_simulations.engine import RayOptions, run_in_process, run_on_ray
from tacit_simulations.judgement import judge
from tacit_simulations.pool import run_in_pool
from tacit_simulations.results import simulated_report
from tacit_simulations.sites import SimulatedSites, certificates_path, training_device

STUDY = "study.toml"

_WORTH_WORKERS = 200  # turns of a site
_SMALL_MODEL_BYTES = 256 * 2**20
_MOST_WORKERS = 32


@dataclass(frozen=True)
class SimulationResult:
    """What a finished simulation leaves behind."""

    report: Report
    report_json: Path
    report_html: Path


def new_folder(study: StudyFile, out: Path | None) -> Path:
    """A folder for a new run, holding the resolved study.

    Raises:
        UsageError: the folder exists and is not empty, or cannot be written.
    """
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    folder = out if out is not None else Path("runs") / f"{study.name}-{stamp}"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"'{folder}' is taken",
            why="it is a file, or a folder that holds something already",
            fix="give another --out, or go on with a run by --resume",
        )
    try:
        write_atomically(folder / STUDY, _with_whole_paths(study).to_toml().encode())
    except OSError as error:
        raise UsageError(
            f"cannot write to '{folder}'",
            why=error.strerror or type(error).__name__,
            fix="give an --out that can be written",
        ) from None
    return folder


def _with_whole_paths(study: StudyFile) -> StudyFile:
    """The study with its paths made absolute, so that it resumes from anywhere."""
    plan = study.simulation
    if plan is None:
        return study
    whole = {}
    if Path(plan.dataset).exists():
        whole["dataset"] = str(Path(plan.dataset).absolute())
    if plan.sites_dir is not None:
        whole["sites_dir"] = str(Path(plan.sites_dir).absolute())
    return study.model_copy(update={"simulation": plan.model_copy(update=whole)})


def read_folder(folder: Path) -> StudyFile:
    """The study of an existing run.

    Raises:
        UsageError: it is no run's folder.
    """
    if not (folder / STUDY).is_file():
        raise UsageError(
            f"'{folder}' is not the folder of a run",
            why=f"it holds no {STUDY}",
            fix="give the folder that `tacit simulate` named when it began",
        )
    return load_study(folder / STUDY)


def check(study: StudyFile) -> SimulationPlan:
    """Everything that can be known to be wrong before any work is done.

    Raises:
        UsageError: the study cannot be simulated as it is.
    """
    if study.simulation is None:
        raise StudyError(
            "the study has no [simulation]",
            why="a simulation needs a data set and a number of sites",
            fix="add [simulation] with dataset, sites and declared_units",
        )
    _require_consistent(study, study.simulation)
    travelling, plugins = study.travelling(), PluginTable(study.plugins)
    build_model(travelling, plugins)
    require_separable(
        travelling,
        plugins,
        Certificates(certificates_path()),
        physical_batch=study.simulation.physical_batch,
        device=training_device(study.simulation),
    )
    calibrate(travelling)
    return study.simulation


def require_affordable(study: StudyFile) -> None:
    """Refuse a study that every site would refuse, before anything is done for it.

    Raises:
        StudyError: the sites' cap is below what the study may cost.
    """
    privacy, plan = study.privacy, study.simulation
    if not isinstance(privacy, LocalPrivacyPlan) or plan is None or plan.epsilon_cap is None:
        return
    if plan.epsilon_cap < privacy.epsilon:
        raise StudyError(
            "every site would refuse the study",
            why=f"it may cost ε = {privacy.epsilon:g}, and simulation.epsilon_cap is "
            f"{plan.epsilon_cap:g}",
            fix="raise simulation.epsilon_cap, or lower privacy.epsilon",
        )


def _require_consistent(study: StudyFile, plan: SimulationPlan) -> None:
    """Refuse what the study and its simulation cannot both mean."""
    privacy = study.privacy
    by_subject = isinstance(privacy, LocalPrivacyPlan) and privacy.unit == "subject"
    if by_subject and plan.subjects is None and plan.dataset not in study.plugins:
        raise StudyError(
            "nobody says which records belong to one subject",
            why="privacy.unit is 'subject', and simulation.subjects is left out",
            fix='set simulation.subjects, for example { by = "column", column = "patient" }',
        )
    cohort = study.federation.cohort_size
    if cohort is not None and cohort > plan.sites:
        raise StudyError(
            f"{cohort} sites cannot be asked",
            why=f"federation.cohort_size is more than simulation.sites, {plan.sites}",
            fix="lower federation.cohort_size, or leave it out to ask all sites",
        )


def simulate(
    study: StudyFile,
    folder: Path,
    *,
    ray: RayOptions | None = None,
    workers: int | None = None,
    watchers: Sequence[Watcher] = (),
) -> SimulationResult:
    """Run `study` in `folder`, from wherever the folder says it stands.

    `workers`, where it is given, stands for `simulation.workers`.

    Raises:
        TacitError: the study, the data or the run is at fault; what is done stays.
    """
    plan = check(study)
    require_affordable(study)
    schedule = calibrate(study.travelling())
    torch.set_num_threads(plan.threads)
    with locked_folder(folder, "running this simulation"):
        sites = SimulatedSites(study, plan, folder)
        data = sites.prepare()
        if study.probes:
            require_labels(data.train)
        coordinator = Coordinator(
            study.travelling(),
            schedule,
            RunFolder(folder, survive_power_loss=False),
            PluginTable(study.plugins),
            device=training_device(plan),
            scoring=_scoring(data),
            watchers=watchers,
        )

        workers = workers or plan.workers or workers_that_pay(study, plan)
        if ray is not None:
            state = run_on_ray(coordinator.run, sites.open, plan.sites, ray)
        elif workers > 1:
            state = run_in_pool(coordinator.run, sites.workplace(), plan.sites, workers=workers)
        else:
            state = run_in_process(coordinator.run, sites.open, plan.sites)
        sites.close()
        judgement = judge(study, plan, state, data)
        report = simulated_report(
            study,
            schedule,
            state,
            sites,
            engine="in-process" if ray is None else "ray",
            evaluation=judgement.evaluation,
            verdicts=judgement.verdicts,
            pictures=judgement.pictures,
            audit=read_audit(folder),
        )
        identity = Identity.load_or_create(folder / "coordinator.key")
        report_json, report_html = write_report(folder, report, identity)
        return SimulationResult(report, report_json, report_html)


def workers_that_pay(study: StudyFile, plan: SimulationPlan) -> int:
    """How many processes the sites are shared out to, if nobody says.

    A worker takes about two seconds of a core before its first site, and some hundred MB; so a
    run that is over by then gets none, and one whose model is large has to be told. On a GPU
    more processes would share one device.
    """
    asked = study.federation.asked_of(plan.sites)
    short = asked * study.federation.rounds < _WORTH_WORKERS
    large = memory_of(study) > _SMALL_MODEL_BYTES
    if short or large or training_device(plan).type != "cpu":
        return 1
    return max(1, min(len(os.sched_getaffinity(0)) // plan.threads, asked, _MOST_WORKERS))


def _scoring(data: LabeledImages) -> LabeledRecords | None:
    """The held-out images, which no site holds, as the coordinator's public labelled data."""
    if not isinstance(data.test, LabeledArraySource):
        return None
    return LabeledRecords(data.test.images, data.test.labels)
