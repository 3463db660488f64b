"""The study's fields as a page of text, built from the models themselves."""

from typing import Any

from tacit_common.study import StudyFile


def study_reference() -> str:
    """Markdown: one table a section of the study file, every field with type and default."""
    schema = StudyFile.model_json_schema()
    definitions: dict[str, dict[str, Any]] = schema["$defs"]
    parts = [_section("The study", schema)]
    parts += [_section(_title(name, body), body) for name, body in definitions.items()]
    return "\n".join(parts)


def _title(name: str, body: dict[str, Any]) -> str:
    for key in ("kind", "mode"):
        constant = body.get("properties", {}).get(key, {}).get("const")
        if constant is not None:
            return f'{name}: {key} = "{constant}"'
    return name


def _section(title: str, body: dict[str, Any]) -> str:
    summary = body.get("description", "").split("\n\n")[0].replace("\n", " ")
    lines = [f"## {title}", "", summary, ""]
    lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
    required = set(body.get("required", []))
    for name, field in body.get("properties", {}).items():
        default = "required" if name in required else f"`{_plain(field.get('default'))}`"
        meaning = field.get("description", "").replace("|", "\\|")
        lines.append(f"| `{name}` | {_type(field)} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return _name(field["$ref"])
    if "const" in field:
        return f'"{field["const"]}"'
    if "enum" in field:
        return " or ".join(f'"{value}"' for value in field["enum"])
    options = field.get("anyOf") or field.get("oneOf")
    if options:
        return " or ".join(_type(option) for option in options)
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    name = str(field.get("type", "any"))
    return {"null": "nothing", "object": "table"}.get(name, name)


def _name(reference: str) -> str:
    return reference.removeprefix("#/$defs/")


def _plain(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{key}={_plain(item)}" for key, item in value.items()) or "{}"
    return str(value)
