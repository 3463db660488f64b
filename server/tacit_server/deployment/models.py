"""The encoders that a coordinator's runs have left."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tacit_common.errors import CheckpointError
from tacit_server.deployment.folder import ServerFolder


@dataclass(frozen=True)
class Model:
    """An exported encoder and what it cost."""

    run: str
    study: str
    rounds: int
    privacy: str
    folder: str
    report: str | None


def models(folder: ServerFolder) -> list[Model]:
    """Every finished run's encoder, by run.

    Raises:
        CheckpointError: one of them is damaged.
    """
    return [_model(config) for config in sorted(folder.runs.glob("*/encoder/config.json"))]


def _model(config: Path) -> Model:
    run = config.parent.parent
    try:
        made = json.loads(config.read_bytes())["provenance"]
        study, rounds, privacy = made["study"], int(made["rounds"]), made["privacy"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"the encoder of the run '{run.name}' cannot be read",
            why=f"'{config.name}' does not say what it was trained on",
            fix="restore the run's folder from a backup, or move it out of runs/",
        ) from None
    report = run / "report.html"
    return Model(
        run=run.name,
        study=study,
        rounds=rounds,
        privacy=privacy,
        folder=str(config.parent),
        report=str(report) if report.is_file() else None,
    )


def as_json(found: list[Model]) -> str:
    """The list as a program reads it."""
    return json.dumps([asdict(model) for model in found], indent=2)
