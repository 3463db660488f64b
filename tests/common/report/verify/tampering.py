"""How a report is changed, as one who knows the format would, and what is found of it."""

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from tacit_common.identity import Identity
from tacit_common.ledger_chain import LedgerExport
from tacit_common.report.verify.checks import read_document, verify
from tacit_common.report.verify.findings import Check, Finding


def place(document: Any, path: str) -> tuple[Any, int | str]:
    """The container of `path`, as findings write it, and the key in it."""
    keys: list[int | str] = []
    for part in path.replace("]", "").replace("[", ".").split("."):
        keys.append(int(part) if part.isdigit() else part)
    for key in keys[:-1]:
        document = document[key]
    return document, keys[-1]


def changed(document: dict[str, Any], path: str, change: Callable[[Any], Any]) -> dict[str, Any]:
    """A copy of the document in which one field of the report is another."""
    copied = copy.deepcopy(document)
    container, key = place(copied["report"], path)
    before = container[key]
    container[key] = change(before)
    assert container[key] != before
    return copied


def resigned(document: dict[str, Any], attacker: Identity) -> dict[str, Any]:
    """The document as an attacker signs it, who knows the format and has a key."""
    text = json.dumps(document["report"], sort_keys=True, separators=(",", ":"))
    signature = attacker.sign("report", hashlib.sha256(text.encode()).digest())
    entry = {"signer": "coordinator", "public_key": attacker.public_key, "signature": signature}
    return {**document, "signatures": [entry]}


def findings(
    document: dict[str, Any], exports: Sequence[LedgerExport], trusted_key: str | None = None
) -> list[Finding]:
    """Everything that verifying the document finds."""
    read = read_document(json.dumps(document), source="report.json")
    if isinstance(read, Check):
        assert not read.holds
        return list(read.findings)
    return verify(read, exports, trusted_key=trusted_key)


def is_named(field: str, found: Sequence[Finding]) -> bool:
    """By its path, or, where the document contradicts itself, in what it contradicts."""
    last = field.rsplit(".", 1)[-1].partition("[")[0]
    return any(
        f.path == field
        or f.path.startswith((f"{field}[", f"{field}."))
        or (f.path == "the report" and last in f.recomputed)
        or (field.startswith(f"{f.path}.") and last in f.recomputed)
        for f in found
    )


Change = tuple[str, Callable[[Any], Any]]

less = lambda value: value * 0.9  # noqa: E731
one_less = lambda count: count - 1  # noqa: E731
one_more = lambda count: count + 1  # noqa: E731
other_text = lambda text: text.replace("not ", "").replace("at most ", "") + "."  # noqa: E731
other_hash = lambda text: ("0" if text[0] != "0" else "1") + text[1:]  # noqa: E731
without_last = lambda items: items[:-1]  # noqa: E731
