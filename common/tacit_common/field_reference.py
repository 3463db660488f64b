"""The fields of a TOML file as a page of Markdown, built from the models themselves."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]
"""A node of the JSON schema that pydantic writes."""


def field_reference(model: type[BaseModel]) -> Iterator[str]:
    """Markdown: every section in the order of the file, with its fields.

    A section with several kinds has a table for each, and links to them.
    """
    schema = model.model_json_schema()
    definitions: dict[str, Schema] = schema["$defs"]
    yield "## Top level\n"
    yield _table(schema, "", definitions)
    for name, node in schema["properties"].items():
        if _is_section(name, node, definitions):
            required = name in schema["required"]
            yield from _section(name, node, definitions, level=2, required=required)


def _section(
    path: str, node: Schema, definitions: dict[str, Schema], *, level: int, required: bool
) -> Iterator[str]:
    """A heading, what the section is, its fields, and the sections inside it."""
    yield f"{'#' * level} {_heading(path, node)}\n"
    need = "Required." if required else "May be left out."
    alternatives = _alternatives(node, definitions)
    if not alternatives:
        yield f"{node['description']} {need}\n"
        return
    key = _discriminator(node)
    if key is None:
        (body,) = alternatives.values()
        yield f"{_summary(body)} {need}\n"
        yield _table(body, path, definitions)
    else:
        yield f"{need} One of:\n"
        for tag, body in alternatives.items():
            title = _tagged(path, key, tag)
            yield f'- [`{key} = "{tag}"`](#{_anchor(title)}): {_summary(body)}'
        yield ""
        for tag, body in alternatives.items():
            yield f"{'#' * (level + 1)} {_tagged(path, key, tag)}\n"
            yield f"{_summary(body)}\n"
            yield _table(body, path, definitions, without=key)
    for body in alternatives.values():
        for name, field in body["properties"].items():
            inner = f"{path}.{name}"
            if _is_section(inner, field, definitions):
                needed = name in body.get("required", [])
                yield from _section(inner, field, definitions, level=level + 1, required=needed)


def _table(
    body: Schema, path: str, definitions: dict[str, Schema], *, without: str | None = None
) -> str:
    """A row for each field of `body`, but for the key `without`."""
    fields = {name: field for name, field in body["properties"].items() if name != without}
    if not fields:
        return "It has no further fields.\n"
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        inner = f"{path}.{name}".removeprefix(".")
        heading = _heading(inner, field)
        linked = _is_section(inner, field, definitions)
        cells = (
            f"`{name}`",
            f"[{heading}](#{_anchor(heading)})" if linked else _type(field),
            "**required**" if name in body.get("required", []) else _default(field),
            _meaning(field, definitions),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _meaning(field: Schema, definitions: dict[str, Schema]) -> str:
    """The field's own words, or the kinds that it may have, or those of its only kind."""
    alternatives = _alternatives(field, definitions)
    key = _discriminator(field)
    if "description" in field or not alternatives:
        return str(field.get("description", ""))
    if key is None:
        return _summary(next(iter(alternatives.values())))
    return f"`{key}` is one of " + ", ".join(f'`"{tag}"`' for tag in alternatives) + "."


# --- the schema ------------------------------------------------------------------------


def _alternatives(node: Schema, definitions: dict[str, Schema]) -> dict[str, Schema]:
    """What a section may be, by tag; one without a tag is alone; none if it is no section."""
    node = _inside(node)
    if "discriminator" in node:
        tags = {reference: tag for tag, reference in node["discriminator"]["mapping"].items()}
        # The mapping is sorted by tag; `oneOf` has the order in which the study lists them.
        references: list[str] = [option["$ref"] for option in node["oneOf"]]
        return {tags[reference]: _named(reference, definitions) for reference in references}
    return {"": _named(node["$ref"], definitions)} if "$ref" in node else {}


def _is_section(path: str, node: Schema, definitions: dict[str, Schema]) -> bool:
    """Whether a field has a section of its own; a free table has one at the top level only."""
    free_table = node.get("type") == "object" and "." not in path
    return free_table or bool(_alternatives(node, definitions))


def _discriminator(node: Schema) -> str | None:
    """The key that says which alternative a section is: `kind` or `mode`."""
    found = _inside(node).get("discriminator", {}).get("propertyName")
    return None if found is None else str(found)


def _inside(node: Schema) -> Schema:
    """The node without `X | None` and without the list around it."""
    options: list[Schema] = [o for o in node.get("anyOf", []) if o.get("type") != "null"]
    if len(options) == 1:
        return _inside(options[0])
    return _inside(node["items"]) if node.get("type") == "array" else node


def _named(reference: str, definitions: dict[str, Schema]) -> Schema:
    return definitions[reference.removeprefix("#/$defs/")]


def _summary(body: Schema) -> str:
    """The first paragraph of a model's docstring."""
    return str(body.get("description", "")).split("\n\n")[0].replace("\n", " ")


# --- words -----------------------------------------------------------------------------


def _heading(path: str, node: Schema) -> str:
    return f"`[[{path}]]`" if node.get("type") == "array" else f"`[{path}]`"


def _tagged(path: str, key: str, tag: str) -> str:
    return f'`{path}.{key} = "{tag}"`'


def _anchor(heading: str) -> str:
    """The fragment that GitHub gives a heading."""
    kept = (c for c in heading.lower() if c.isalnum() or c in " -_")
    return "".join(kept).replace(" ", "-")


def _type(field: Schema) -> str:
    field = _inside(field) if field.get("type") != "array" else field
    if "const" in field:
        return f'`"{field["const"]}"`'
    if "enum" in field:
        return " or ".join(f'`"{value}"`' for value in field["enum"])
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}"
    name: str = "table" if field["type"] == "object" else field["type"]
    return _length(field, _range(field, name))


def _range(field: Schema, name: str) -> str:
    """A number with its bounds, as in `0 < number ≤ 1`, or `integer ≥ 1`."""
    low = high = None
    for key, sign in (("minimum", "≤"), ("exclusiveMinimum", "<")):
        low = (field[key], sign) if key in field else low
    for key, sign in (("maximum", "≤"), ("exclusiveMaximum", "<")):
        high = (field[key], sign) if key in field else high
    if low is not None and high is not None:
        return f"{_number(low[0])} {low[1]} {name} {high[1]} {_number(high[0])}"
    if low is not None:
        return f"{name} {'≥' if low[1] == '≤' else '>'} {_number(low[0])}"
    return name if high is None else f"{name} {high[1]} {_number(high[0])}"


def _number(value: float) -> str:
    return "2³¹" if value == 2**31 else f"{value:g}"


def _length(field: Schema, name: str) -> str:
    """A string with its form and its length."""
    form = f" of the form `{field['pattern'].strip('^$')}`" if "pattern" in field else ""
    most = f", at most {field['maxLength']} characters" if "maxLength" in field else ""
    return f"{name}{form}{most}"


def _default(field: Schema) -> str:
    value = field.get("default")
    if value is None or value in ({}, []) or (isinstance(value, dict) and "kind" not in value):
        return "none"
    if isinstance(value, dict):
        return f'`kind = "{value["kind"]}"`'
    return f"`{_toml(value)}`"


def _toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"'
        case list():
            return f"[{', '.join(map(_toml, value))}]"
        case _:
            return str(value)
