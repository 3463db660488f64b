"""Reading a study file: TOML, overrides, and errors that name the nearest valid field."""

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tacit_common.errors import StudyError
from tacit_common.study import StudyFile
from tacit_common.toml_file import dereference, wrong_fields


def load_study(path: Path, overrides: list[str] | None = None) -> StudyFile:
    """Read a study file, with `key.path=value` overrides applied on top.

    Raises:
        StudyError: the file is missing, not TOML, or any field is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(
            f"cannot read study '{path}'",
            why=getattr(error, "strerror", None) or "it is not UTF-8 text",
            fix="give the path of a TOML file, or a recipe name from `tacit recipes`",
        ) from None
    return parse_study(text, source=str(path), overrides=overrides)


def parse_study(
    text: str, *, source: str = "study", overrides: list[str] | None = None
) -> StudyFile:
    """Parse the text of a study file.

    Raises:
        StudyError: it is not TOML, or any field is wrong.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StudyError(
            f"{source} is not valid TOML",
            why=str(error),
            fix="mend that line; `tacit study schema` shows every field",
        ) from None
    for override in overrides or []:
        _apply_override(document, override)
    try:
        return StudyFile.model_validate(document)
    except ValidationError as error:
        raise _study_error(error, source) from None


def _apply_override(document: dict[str, Any], override: str) -> None:
    """Set one dotted key, or remove it where the value is empty (`probes.0.epsilon=`).

    List items are addressed by number. A section whose kind or mode changes keeps only
    the fields that its new kind has too.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise StudyError(
            f"--set {override!r} is not an assignment",
            why="it has no '=' between key and value",
            fix="write --set section.key=value, for example --set privacy.epsilon=4",
        )
    *parents, leaf = key.strip().split(".")
    node: Any = document
    for part in parents:
        node = _descend(node, part, override)
    if isinstance(node, list):
        node[_index(node, leaf, override)] = _override_value(text)
    elif not isinstance(node, dict):
        raise _not_a_section(override)
    elif not text:
        node.pop(leaf, None)
    else:
        node[leaf] = _override_value(text)
        fields = _fields_of_kind(parents, node[leaf]) if leaf in {"kind", "mode"} else None
        for stale in [name for name in node if fields is not None and name not in fields]:
            del node[stale]


def _override_value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string: --set privacy.mode=none


def _fields_of_kind(section: list[str], tag: Any) -> set[str] | None:
    """The fields that a section has under this kind, or None if there is no such kind."""
    schema = StudyFile.model_json_schema()
    node: dict[str, Any] = schema
    for part in section:
        child = node["items"] if "items" in node else node.get("properties", {}).get(part, {})
        node = dereference(schema, child)
    reference = node.get("discriminator", {}).get("mapping", {}).get(tag)
    if reference is None:
        return None
    return set(dereference(schema, {"$ref": reference})["properties"])


def _descend(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, override)]
    if isinstance(node, dict):
        return node.setdefault(part, {})
    raise _not_a_section(override)


def _index(node: list[Any], part: str, override: str) -> int:
    if part.isdecimal() and int(part) < len(node):
        return int(part)
    raise StudyError(
        f"--set {override!r} addresses no item of a list",
        why=f"'{part}' is not a number below {len(node)}",
        fix="number list items from 0, for example probes.0.epsilon=1",
    )


def _not_a_section(override: str) -> StudyError:
    return StudyError(
        f"--set {override!r} goes through a plain value",
        why="only sections and lists have keys under them",
        fix="check the key with `tacit study show`",
    )


def _study_error(error: ValidationError, source: str) -> StudyError:
    problems = wrong_fields(error, StudyFile)
    what = f"{source} has {len(problems)} wrong field" + ("s" if len(problems) > 1 else "")
    return StudyError(
        what,
        why="\n".join(problems),
        fix="mend the study; `tacit study schema` describes every field",
    )
