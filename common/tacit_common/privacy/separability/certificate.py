"""Remembers that a check was passed, so that it runs once and not at every start.

A certificate stands for the code that was checked: the sources of every package that the
model, the objective and the gradient path come from, what they were configured with, and the
versions of the libraries beneath. Where that cannot be told, there is no certificate.
"""

import hashlib
import json
import platform
import sys
import sysconfig
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from types import FunctionType, ModuleType

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from tacit_common.files import write_atomically
from tacit_common.objectives.contract import Objective, PretrainModel
from tacit_common.privacy.separability.object_state import reachable, state_of
from tacit_common.study import Study

MOST_KEPT = 200
_LIBRARIES = ("torch", "opacus", "numpy", "tacit")


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: int
    passed: list[str]


class Certificates:
    """The checks that were passed, in a small file.

    A file that is missing, damaged or of another format holds none: a check then runs again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def require(self, key: str | None, check: Callable[[], None]) -> None:
        """Run `check` unless it was passed before under `key`; no key, no memory.

        A check that raises is not remembered, and its error is passed on.
        """
        if key is not None and key in self._passed():
            return
        check()
        if key is not None:
            passed = [*(other for other in self._passed() if other != key), key]
            kept = _Kept(format=1, passed=passed[-MOST_KEPT:])
            # It can be made again, so it need not survive a power cut.
            write_atomically(self._path, kept.model_dump_json().encode(), survive_power_loss=False)

    def _passed(self) -> list[str]:
        try:
            kept = _Kept.model_validate_json(self._path.read_bytes())
        except (OSError, ValidationError):
            return []
        return kept.passed if kept.format == 1 else []


def certificate_key(
    study: Study,
    model: PretrainModel,
    objective: Objective,
    gradient_path: Callable[..., object],
) -> str | None:
    """SHA-256 of everything that the result of a check depends on; None if it cannot be told.

    Covers the study's plans for encoder, objective, views, augmentations and privacy; the
    sources of all packages that the classes of the model, the objective and `gradient_path`
    come from, and of what those packages refer to; what model and objective hold, weights aside;
    and the versions of Python and the libraries. `model` has no hooks on it yet.
    """
    classes = [type(part) for part in (*model.modules(), objective)]
    path = gradient_path.func if isinstance(gradient_path, partial) else gradient_path
    bases = {base for cls in classes for base in cls.__mro__}
    sources = _sources({part.__module__ for part in (*bases, path)})
    if sources is None:
        return None
    digest = hashlib.sha256()
    for part in (
        "tacit certificate 1",
        platform.python_version(),
        json.dumps({name: _version(name) for name in _LIBRARIES}),
        study.encoder.model_dump_json(),
        study.objective.model_dump_json(),
        study.views.model_dump_json(),
        study.privacy.model_dump_json(include={"mode", "unit", "records_per_subject"}),
        str(study.federation.augmentations),
        *_lines(state_of("gradient path", gradient_path)),
        *(f"{cls.__module__}.{cls.__qualname__}" for cls in classes),
        *_lines(_configuration(model, objective)),
        *sources,
    ):
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()


def _lines(state: dict[str, str]) -> list[str]:
    return sorted(f"{path} {value}" for path, value in state.items())


def _configuration(model: nn.Module, objective: Objective) -> dict[str, str]:
    """What model and objective hold, except the values of parameters."""
    held = state_of("model", model) | state_of("objective", objective)
    for path, leaf in (*reachable("model", model), *reachable("objective", objective)):
        if isinstance(leaf, nn.Parameter):
            held[path] = f"parameter {tuple(leaf.shape)} {leaf.requires_grad}"
    return held


def _sources(module_names: set[str]) -> list[str] | None:
    """Digests of the files of these modules' packages, and of packages that those refer to.

    Torch and Opacus, and what is only referred to and installed beside Python, count by their
    versions. None if a module has no file, as one that was typed in.
    """
    named = {name.partition(".")[0] for name in (*module_names, __name__)}
    pending = sorted(named)
    seen: set[str] = set()
    digests: list[str] = []
    while pending:
        package = pending.pop()
        if package in seen or package in sys.stdlib_module_names:
            continue
        seen.add(package)
        place = _place(package)
        if place is None:
            return None
        ours = package.startswith("tacit_")
        installed = any(place.is_relative_to(folder) for folder in _installed())
        if package in _LIBRARIES or (installed and package not in named and not ours):
            digests.append(f"{package} {_version(package)}")
            continue
        for file in _code_in(place) if place.is_dir() else [place]:
            digests.append(f"{file} {hashlib.sha256(file.read_bytes()).hexdigest()}")
        if not ours:  # ours name one another and the libraries above
            pending += sorted(_packages_named_in(package))
    return sorted(digests)


def _place(package: str) -> Path | None:
    """The folder of a package, or the file of a module that stands alone."""
    module = sys.modules.get(package)
    folders = list(getattr(module, "__path__", ()))
    place = Path(folders[0]) if folders else Path(getattr(module, "__file__", None) or "")
    return place if folders or place.is_file() else None


def _code_in(folder: Path) -> list[Path]:
    return sorted(file for kind in ("*.py", "*.so", "*.pyd") for file in folder.rglob(kind))


def _installed() -> set[str]:
    return {sysconfig.get_path(kind) for kind in ("purelib", "platlib", "stdlib")}


def _packages_named_in(package: str) -> set[str]:
    """The packages whose modules, classes and functions the modules of a package refer to."""
    named: set[str] = set()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == package:
            for value in list(vars(module).values()):
                if isinstance(value, ModuleType):
                    named.add(value.__name__)
                elif isinstance(value, (type, FunctionType)):
                    named.add(value.__module__)
    return {name.partition(".")[0] for name in named}


def _version(package: str) -> str:
    if package == "torch":
        return torch.__version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get(package), "__version__", "unknown"))
