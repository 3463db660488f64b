"""The files that keep a server, a site or a witness running: a systemd unit, a compose file.

Both are written into the folder of whom they serve, and hold it to the same things: one
user who is not root, a file system that is read-only but for that folder, no capability
that is not needed, no new privileges. A site's data is mounted read-only.
"""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from tacit_common.errors import UsageError
from tacit_common.files import write_atomically

Role = Literal["server", "site", "witness"]

COMPOSE_FILE = "compose.yaml"

# Flower calls home unless told not to. Every entry point of ours sets these as well; here
# they hold for whatever else is started in the same unit or container.
ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "HF_HUB_OFFLINE": "1",
    "XDG_CACHE_HOME": "/tmp/cache",  # noqa: S108 - private to the service, gone when it ends
    "XDG_CONFIG_HOME": "/tmp/config",  # noqa: S108
    "PYTHONUNBUFFERED": "1",
}

_FIRST_FREE_PORT = 1024  # whoever listens below needs a capability


@dataclass(frozen=True)
class _Habits:
    """How one role is called, started again and stopped."""

    about: str
    restart_s: int
    stop_s: int


_HABITS: dict[Role, _Habits] = {
    # A SuperLink that is back within 60 s lets its runs complete.
    "server": _Habits("coordinator", restart_s=2, stop_s=60),
    # Flower refuses a node that comes back before its heartbeat is missed.
    "site": _Habits("data site", restart_s=15, stop_s=90),
    "witness": _Habits("witness", restart_s=2, stop_s=30),
}


@dataclass(frozen=True)
class Variable:
    """A value of a compose file that its user gives in the environment."""

    name: str
    meaning: str

    def __str__(self) -> str:
        return f"${{{self.name}:?{self.meaning}}}"  # compose stops with `meaning` if it is unset


@dataclass(frozen=True)
class Mount:
    """What a container sees of its host."""

    source: str | Variable
    target: str
    read_only: bool = False


def service_files(
    role: Role,
    folder: Path,
    *,
    name: str,
    health_address: str | None,
    listen: str | None = None,
    data: Sequence[Path] = (),
    gpu: bool = False,
) -> dict[str, str]:
    """The text of `tacit-ROLE.service` and of `compose.yaml`, by file name.

    Guarantees: no name or path adds a line or a setting of its own.

    Args:
        role: Which command runs: `tacit ROLE run FOLDER`.
        folder: The folder of the server, site or witness, which exists: all that may be
            written. Its owner is the user who runs the service.
        name: Whose it is, for people.
        health_address: host:port of the gRPC health service, None where there is none.
        listen: host:port that is reached from outside, None for a site.
        data: What is read, and only read: a site's data.
        gpu: Whether a GPU is needed.

    Raises:
        UsageError: the name or a path holds a character that cannot be quoted safely.
    """
    place = _checked(str(folder.resolve()))
    paths = [_checked(str(path.absolute())) for path in data]  # a link, where it was named by one
    owner = folder.stat()
    facts = {
        "role": role,
        "name": _checked(name),
        "habits": _HABITS[role],
        "folder": place,
        "data": paths,
        "gpu": gpu,
        "owner": _user_name(folder),
        "command": [str(_installed_command()), role, "run", place],
        "port": _port(listen),
        "first_free_port": _FIRST_FREE_PORT,
        "environment": ENVIRONMENT,
    }
    unit = _environment().get_template("unit.service.j2").render(facts)
    # Inside the container everything has the path that it has outside, so that the paths
    # in the configuration are true in both places.
    mounts = [Mount(place, place)]
    mounts += [Mount(path, path, read_only=True) for path in paths]
    compose = render_compose(
        role,
        project=f"tacit-{role}-{name}",
        usage=[f"docker compose --file {COMPOSE_FILE} up --detach"],
        folder=place,
        mounts=mounts,
        user=f"{owner.st_uid}:{owner.st_gid}",
        health_address=health_address,
        listen=listen,
        gpu=gpu,
    )
    return {f"tacit-{role}.service": unit, COMPOSE_FILE: compose}


def render_compose(
    role: Role,
    *,
    project: str,
    usage: Sequence[str],
    folder: str,
    mounts: Sequence[Mount],
    user: str | Variable,
    health_address: str | None,
    listen: str | None,
    gpu: bool,
    build_from: str | None = None,
) -> str:
    """A compose file for one role; `folder` is where the container finds its folder."""
    return (
        _environment()
        .get_template("compose.yaml.j2")
        .render(
            role=role,
            habits=_HABITS[role],
            project=project,
            usage=usage,
            folder=folder,
            mounts=mounts,
            user=user,
            health_address=health_address,
            port=_port(listen),
            first_free_port=_FIRST_FREE_PORT,
            gpu=gpu,
            variant="cuda" if gpu else "cpu",
            build_from=build_from,
            environment=ENVIRONMENT,
        )
    )


def write_service_files(directory: Path, files: dict[str, str]) -> None:
    """Write what `service_files` gave into a folder, which is made if need be."""
    for name, text in files.items():
        write_atomically(directory / name, text.encode())


def _installed_command() -> Path:
    """The `tacit` that stands beside the Python that runs this, or else the first on PATH."""
    beside = Path(sys.executable).with_name("tacit")
    if os.access(beside, os.X_OK):
        return beside
    return Path(shutil.which("tacit") or beside)


def _checked(text: str) -> str:
    if any(character in "\"'\\:" or not character.isprintable() for character in text):
        raise UsageError(
            f"no service file can be written for {text!r}",
            why="quotes, backslashes, colons and line breaks mean something to systemd and compose",
            fix="use a name or a path without them",
        )
    return text


def _unit_word(text: str) -> str:
    """One word of a unit file: systemd expands `%` and splits at spaces."""
    return '"' + text.replace("%", "%%") + '"'


def _command_word(text: str) -> str:
    """One word of a command line in a unit file, where `$` is expanded as well."""
    return _unit_word(text).replace("$", "$$")


def _compose_word(value: str | Variable) -> str:
    """A string of a compose file: JSON is YAML. Compose expands `$`, which only we may use."""
    text = str(value) if isinstance(value, Variable) else value.replace("$", "$$")
    return json.dumps(text, ensure_ascii=False)


def _port(address: str | None) -> int | None:
    return None if address is None else int(address.rpartition(":")[2])


def _user_name(folder: Path) -> str:
    try:
        return folder.owner()
    except KeyError:  # a number without a name, as in a container; systemd takes it too
        return str(folder.stat().st_uid)


@cache
def _environment() -> Environment:
    jinja = Environment(
        loader=PackageLoader("tacit_common"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # These are not web pages: each kind of file has its own quoting, by filter.
        autoescape=False,  # noqa: S701
    )
    jinja.filters |= {
        "unit_word": _unit_word,
        "command_word": _command_word,
        "compose_word": _compose_word,
    }
    return jinja
