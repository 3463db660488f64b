"""A TOML file that a person writes, held to a pydantic model.

Reading names what is wrong field by field, with the nearest valid name where one is
unknown. Writing puts what each field means above it, so that the file explains itself.
"""

import difflib
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from tacit_common.errors import UsageError
from tacit_common.files import write_atomically

ModelT = TypeVar("ModelT", bound=BaseModel)

_COMMENT_WIDTH = 88


def read_toml_file(path: Path, model: type[ModelT], *, what: str, fix: str) -> ModelT:
    """The file at `path` as a `model`. `what` is what people call it; `fix`, how to mend it.

    Raises:
        UsageError: it is missing, not TOML, or any field is wrong.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"cannot read {what} '{path}'", why=why, fix=fix) from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{what} '{path}' is not valid TOML", why=str(error), fix=fix) from None
    try:
        return model.model_validate(document)
    except ValidationError as error:
        problems = wrong_fields(error, model)
        count = f"{len(problems)} wrong field{'s' if len(problems) > 1 else ''}"
        why = "\n".join(problems)
        raise UsageError(f"{what} '{path}' has {count}", why=why, fix=fix) from None


def write_toml_file(path: Path, content: BaseModel, *, opening: str) -> None:
    """Write `content` so that `read_toml_file` reads it back, durably or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        write_atomically(path, commented_toml(content, opening=opening).encode())
    except OSError as error:
        raise UsageError(
            f"'{path.name}' cannot be written",
            why=error.strerror or type(error).__name__,
            fix="check that the folder is writable and has space",
        ) from None


# --- what is wrong ---------------------------------------------------------------------


def wrong_fields(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line for each wrong field, with the nearest valid name where a name is unknown."""
    schema = model.model_json_schema()
    return [_problem(dict(item), schema) for item in error.errors(include_url=False)]


def did_you_mean(name: object, valid: list[str]) -> str:
    """'; did you mean …?', or nothing where no valid name is near."""
    nearest = difflib.get_close_matches(str(name), valid, n=1)
    return f"; did you mean '{nearest[0]}'?" if nearest else ""


def dereference(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """The node of a JSON schema that another node stands for."""
    options = [option for option in node.get("anyOf", []) if "$ref" in option]
    if options:  # an optional section: X | None
        node = options[0]
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].removeprefix("#/$defs/")]
    return node


def _problem(item: dict[str, Any], schema: dict[str, Any]) -> str:
    dotted, known_names = _locate(item["loc"], schema)
    if item["type"] == "extra_forbidden":
        return f"'{dotted}' is not a field{did_you_mean(item['loc'][-1], known_names)}"
    if item["type"] == "missing":
        return f"'{dotted}' is missing: it has no default"
    if item["type"] == "union_tag_invalid":
        tag, allowed = item["ctx"]["tag"], item["ctx"]["expected_tags"]
        hint = did_you_mean(tag, allowed.replace("'", "").split(", "))
        return f"'{dotted}' is '{tag}', which is none of {allowed}{hint}"
    if item["type"] == "union_tag_not_found":
        return f"'{dotted}' has no {item['ctx']['discriminator']}"
    message = item["msg"].removeprefix("Value error, ")
    return f"'{dotted}': {message[:1].lower()}{message[1:]}" if dotted else message


def _locate(location: tuple[str | int, ...], schema: dict[str, Any]) -> tuple[str, list[str]]:
    """The dotted name of a place in the file, and the field names that are valid there.

    Pydantic's locations also hold the tag of a union ("encoder", "vit", "width"); the
    file does not, so tags are recognised by walking the schema, and left out.
    """
    node = schema
    siblings: list[str] = []
    names: list[str] = []
    for part in location:
        tags = node.get("discriminator", {}).get("mapping", {})
        if part in tags:
            node = dereference(schema, {"$ref": tags[part]})
            continue
        names.append(str(part))
        siblings = list(node.get("properties", {}))
        child = node["items"] if "items" in node else node.get("properties", {}).get(part, {})
        node = dereference(schema, child)
    return ".".join(names), siblings


# --- a file that explains itself -------------------------------------------------------


def commented_toml(content: BaseModel, *, opening: str = "") -> str:
    """`content` as TOML, with every field's description as a comment above it.

    A field or a section that is None stands there as a comment, with the first of its
    `examples`: TOML has no word for nothing.
    """
    return "\n".join([*_comment(opening), *_section(content, "")]).strip() + "\n"


def _section(content: BaseModel, path: str) -> Iterator[str]:
    fields = type(content).model_fields
    dumped = content.model_dump(mode="json")
    sections = {
        name: model
        for name, field in fields.items()
        if (model := _model_of(field)) is not None or isinstance(dumped[name], dict)
    }
    # Plain values first: in TOML everything after a section's heading belongs to it.
    for name, field in fields.items():
        if name not in sections:
            yield from ("", *_comment(field.description or ""))
            yield _unset(name, field) if dumped[name] is None else _line(name, dumped[name])
    for name, model in sections.items():
        inner, value = f"{path}.{name}".removeprefix("."), getattr(content, name)
        yield from ("", f"# [{inner}]" if value is None else f"[{inner}]")
        yield from _comment(fields[name].description or _summary(model))
        if isinstance(value, BaseModel):
            yield from _section(value, inner)
        elif value is not None:  # a free table
            yield from (_line(key, dumped[name][key]) for key in value)
        elif model is not None:
            for key, field in model.model_fields.items():
                yield from ("#", *_comment(field.description or ""), _unset(key, field))


def _summary(model: type[BaseModel] | None) -> str:
    return "" if model is None else (model.__doc__ or "").split("\n\n")[0]


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a section, which may be optional; None for a plain value or a free table.

    Of several that it may be, the first.
    """
    found: list[Any] = [field.annotation]
    for option in found:
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
        if get_origin(option) in {Union, UnionType, Annotated}:
            found += get_args(option)
    return None


def _line(name: str, value: object) -> str:
    """`name = value`: a list on one line where it fits, else an item a line."""
    text = tomli_w.dumps({name: value}).strip()
    if isinstance(value, list):
        items = (tomli_w.dumps({"": item}).partition(" = ")[2].strip() for item in value)
        short = f"{name} = [{', '.join(items)}]"
        return short if len(short) <= _COMMENT_WIDTH else text
    return text


def _unset(name: str, field: FieldInfo) -> str:
    """A field that is left out, as it would be written if it were not."""
    text = _line(name, field.examples[0]) if field.examples else f"{name} ="
    return "\n".join(f"# {line}" for line in text.splitlines())


def _comment(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        for line in textwrap.wrap(paragraph, _COMMENT_WIDTH):
            yield f"# {line}"
