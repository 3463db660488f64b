"""Studies that come with Tacit: each a TOML file in this folder, described by its first lines."""

import difflib
import os
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from tacit_common.errors import StudyError
from tacit_common.study import StudyFile
from tacit_common.study_file import load_study, parse_study

__all__ = ["named_study", "recipe_names", "recipe_summary", "recipe_text"]


def named_study(study: str, overrides: Sequence[str] | None = None) -> StudyFile:
    """A study file by its path, or a recipe by its name.

    Raises:
        StudyError: there is none, or it is wrong.
    """
    changes = list(overrides or ())
    if study.endswith(".toml") or os.sep in study:
        return load_study(Path(study), changes)
    return parse_study(recipe_text(study), source=f"recipe '{study}'", overrides=changes)


def recipe_names() -> list[str]:
    """Names of all recipes, sorted."""
    return sorted(path.name.removesuffix(".toml") for path in _files())


def recipe_text(name: str) -> str:
    """The study file of a recipe.

    Raises:
        StudyError: there is no such recipe.
    """
    for path in _files():
        if path.name == f"{name}.toml":
            return path.read_text(encoding="utf-8")
    names = recipe_names()
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{nearest[0]}'?" if nearest else f"the recipes are {', '.join(names)}"
    raise StudyError(
        f"there is no recipe '{name}'",
        why=f"no study file of that name exists; {hint}",
        fix="see `tacit recipes`, or give a path that ends in .toml",
    )


def recipe_summary(name: str) -> str:
    """The first sentence of the comment that opens a recipe."""
    comment = []
    for line in recipe_text(name).splitlines():
        if not line.startswith("# "):
            break
        comment.append(line.removeprefix("# "))
    return " ".join(comment).partition(". ")[0].rstrip(".") + "."


def _files() -> list[Traversable]:
    return [p for p in resources.files(__name__).iterdir() if p.name.endswith(".toml")]
