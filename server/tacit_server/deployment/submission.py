"""What a person at the coordinator asks of runs: submit, stop, resume.

A run is a folder before it is anything else. These commands write what is wanted into it;
the executor alone makes it so, now or when the server is started.
"""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from tacit_common.errors import LinkError, UsageError
from tacit_common.files import write_atomically
from tacit_common.flower.control import Control
from tacit_common.model import build_model
from tacit_common.plugins import PluginTable
from tacit_common.privacy.plan import calibrate
from tacit_common.study import StudyFile
from tacit_server.deployment.folder import ServerFolder
from tacit_server.deployment.roster import Roster
from tacit_server.deployment.run_record import (
    GOES_ON,
    STATUS,
    SUBMISSION,
    AtSuperlink,
    Status,
    Submission,
)


def submit(folder: ServerFolder, study: StudyFile, *, sites: int | None, patience_s: float) -> Path:
    """Make a run's folder, which the executor takes up; returns it.

    The run begins as soon as `sites` sites have joined (all enrolled ones if None), or with
    fewer, if any, after `patience_s`.

    Raises:
        UsageError: the study cannot be run, or too few sites are enrolled.
    """
    enrolled = len(Roster(folder.roster).sites)
    wanted = enrolled if sites is None else sites
    if not 1 <= wanted <= enrolled:
        raise UsageError(
            f"{wanted} sites cannot join",
            why=f"{enrolled} are enrolled",
            fix="enroll them with: tacit server enroll DIR NAME.site.json",
        )
    travelling = study.travelling()
    build_model(travelling, PluginTable(study.plugins))
    calibrate(travelling)
    run = _new_folder(folder, study)
    submission = Submission(at=datetime.now(UTC), sites=wanted, patience_s=patience_s)
    Status(stage="submitted").write(run / STATUS)
    content = study.model_copy(update={"simulation": None}).to_toml()
    write_atomically(run / "study.toml", content.encode())
    submission.write(run / SUBMISSION)  # last: a folder without it is no run yet
    return run


def stop(folder: ServerFolder, name: str) -> None:
    """End a run; what is done stays, and it can be resumed.

    Raises:
        UsageError: there is no such run, or it is over.
    """
    run = existing_run(folder, name)
    submission, status = Submission.read(run / SUBMISSION), Status.read(run / STATUS)
    if status.stage not in GOES_ON:
        raise UsageError(
            f"the run '{name}' cannot be stopped",
            why=f"it is {status.stage} already",
            fix="tacit server status shows all runs",
        )
    submission.model_copy(update={"stopped": True}).write(run / SUBMISSION)
    number = AtSuperlink.number(run)
    if number is None:
        return
    address, ca = folder.config().superlink_address, folder.ca_certificate.read_bytes()
    # At once if it can be; where the SuperLink does not answer, the executor does it later.
    with suppress(LinkError), Control(address, ca) as control:
        control.stop_run(number)


def resume(folder: ServerFolder, name: str) -> None:
    """Go on with a run that failed or was stopped, from its last checkpoint.

    Raises:
        UsageError: there is no such run, or it needs no resuming.
    """
    run = existing_run(folder, name)
    status = Status.read(run / STATUS)
    if status.stage not in ("failed", "stopped"):
        raise UsageError(
            f"the run '{name}' cannot be resumed",
            why="it is finished"
            if status.stage == "finished"
            else "it goes on by itself as soon as server and sites are there",
            fix=f"tacit server status shows where it stands; its folder is {run}",
        )
    submission = Submission.read(run / SUBMISSION)
    submission.model_copy(update={"stopped": False}).write(run / SUBMISSION)
    Status(stage="submitted").write(run / STATUS)


def existing_run(folder: ServerFolder, name: str) -> Path:
    """The folder of a run that was submitted.

    Raises:
        UsageError: there is none.
    """
    run = folder.run_folder(name)
    if not (run / SUBMISSION).is_file():
        known = sorted(path.parent.name for path in folder.runs.glob("*/" + SUBMISSION))
        raise UsageError(
            f"there is no run '{name}'",
            why=f"submitted are: {', '.join(known) or 'none'}",
            fix="give the name that `tacit server submit` printed",
        )
    return run


def _new_folder(folder: ServerFolder, study: StudyFile) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    for number in range(1, 100):
        run = folder.run_folder(f"{study.name}-{stamp}" + (f"-{number}" if number > 1 else ""))
        try:
            run.mkdir(parents=True, exist_ok=False)
        except FileExistsError:
            continue
        return run
    raise UsageError(
        "a folder for the run cannot be made",
        why="too many runs of this name began in this second",
        fix="submit again",
    )
