"""Whether a report is true, as far as anybody can tell who was not there.

    verify(signed, exports)    what does not hold, field by field
    run_checks(…)              the same in groups, with what holds as well

Nothing is fetched. Every ε is computed anew from the events in the report, by the code that
planned it and by two accountants that share no code with it; every sentence on privacy is
said again. With the ledgers of the sites, their rows decide in the report's place. A
signature shows that nothing was changed since; whose it is only a key shows that came by
another way.
"""

import json
from collections.abc import Sequence

from pydantic import ValidationError

from tacit_common.errors import UsageError
from tacit_common.ledger_chain import LedgerExport
from tacit_common.report.schema import SCHEMA_VERSION
from tacit_common.report.signing import SignedReport, fingerprint
from tacit_common.report.verify.claims import (
    check_audit,
    check_cohorts,
    check_study,
    check_wording,
)
from tacit_common.report.verify.figures import check_figures, check_spending
from tacit_common.report.verify.findings import Check, Comparison, Finding
from tacit_common.report.verify.ledgers import check_heads, check_ledgers
from tacit_common.report.verify.releases import check_releases

NOT_CHECKED = (
    "Nothing in a report or a ledger shows these, so they were not checked: that all sites of "
    "the federation are listed, what a site declares of its size, hashes of parameters and their "
    "number, times, losses, norms of updates, accuracies and pictures, assumptions, versions of "
    "software, and what an audit counted."
)


def verify(
    signed: SignedReport, exports: Sequence[LedgerExport], *, trusted_key: str | None
) -> list[Finding]:
    """Every field that does not hold; none if the report is true as far as can be told.

    `exports` are ledgers of the sites, in any order; sites without one are checked against
    the report alone. `trusted_key` is the public key that must have signed; None accepts
    any key.
    """
    checks = run_checks(signed, exports, trusted_key=trusted_key)
    return [finding for check in checks for finding in check.findings]


def run_checks(
    signed: SignedReport, exports: Sequence[LedgerExport], *, trusted_key: str | None
) -> list[Check]:
    """All checks, in the order in which a reader should see them."""
    report = signed.report
    return [
        check_signatures(signed, trusted_key),
        check_study(report),
        check_spending(report),
        check_figures(report),
        check_releases(report),
        check_cohorts(report),
        check_wording(report),
        check_audit(report),
        check_heads(report),
        *check_ledgers(report, exports),
    ]


def check_signatures(signed: SignedReport, trusted_key: str | None) -> Check:
    """Whether every signature is genuine, and one is by the trusted key."""
    found = Comparison()
    for i, signature in enumerate(signed.signatures):
        if not signed.is_genuine(signature):
            path = f"signatures[{i}].signature"
            found.differs(path, signature.signature, "a signature of this report by this key")
    keys = [signature.public_key for signature in signed.signatures]
    if trusted_key is not None:
        if trusted_key not in keys:
            found.differs("signatures", keys, trusted_key)
        claim = "The report is as the holder of the given key signed it."
        return found.check("signature", claim)
    names = ", ".join(f"{key} (fingerprint {fingerprint(key)})" for key in keys)
    return found.check(
        "signature",
        "The report was not changed since it was signed.",
        note=f"this does not show who signed; ask the coordinator whether its key is {names}, "
        "or give it with --key",
    )


def read_document(text: str, *, source: str) -> SignedReport | Check:
    """The signed report in `text`; or a check that fails, where it contradicts itself.

    Raises:
        UsageError: it is no JSON object, or a report of another schema version.
    """
    try:
        document = json.loads(text)
        if document["report"]["schema_version"] == SCHEMA_VERSION:
            return SignedReport.model_validate_json(text)
    except ValidationError as error:
        found = Comparison()
        for problem in error.errors(include_url=False, include_input=False):
            message = problem["msg"].removeprefix("Value error, ")
            found.differs(_path(problem["loc"]), "what is there", message)
        return found.check("document", "The document is whole and does not contradict itself.")
    except (ValueError, KeyError, TypeError):
        pass
    raise UsageError(
        f"{source} is not a signed report of schema version {SCHEMA_VERSION}",
        why="it is no JSON document of that kind",
        fix="give the report.json of a run, or use the Tacit version that wrote it",
    )


_TAGS = {"local", "none", "poisson_gaussian_steps", "gaussian_release", "non_private_release"}


def _path(location: tuple[int | str, ...]) -> str:
    """A place in the document as findings name it: no "report", no tags of unions."""
    parts = [part for part in location if part not in _TAGS]
    if parts and parts[0] == "report":
        parts = parts[1:]
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".") or "the report"
