"""The encoders that a coordinator's runs have left."""

import json
from dataclasses import asdict, dataclass

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
    """Every finished run's encoder, by run."""
    found = []
    for config in sorted(folder.runs.glob("*/encoder/config.json")):
        run = config.parent.parent
        made = json.loads(config.read_bytes())["provenance"]
        report = run / "report.html"
        found.append(
            Model(
                run=run.name,
                study=made["study"],
                rounds=made["rounds"],
                privacy=made["privacy"],
                folder=str(config.parent),
                report=str(report) if report.is_file() else None,
            )
        )
    return found


def as_json(found: list[Model]) -> str:
    """The list as a program reads it."""
    return json.dumps([asdict(model) for model in found], indent=2)
