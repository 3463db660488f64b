"""`tacit site doctor`: is everything there that the site needs, and how is it mended if not?

No request is signed, no row is added to the ledger, and nothing that could count as work is
sent: the coordinator sees a stranger who is turned away, the witness a question.
"""

from collections.abc import Callable, Iterator
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from tacit_client.deployment.doctor_link import coordinator, witness
from tacit_client.deployment.doctor_local import (
    approvals,
    budget,
    card,
    configuration,
    data,
    device,
    disk,
    journal,
    ledger,
    policy,
    secrets,
    versions,
)
from tacit_client.deployment.findings import Finding
from tacit_client.deployment.site_folder import SiteFolder
from tacit_common.errors import TacitError

Check = Callable[[SiteFolder], Iterator[Finding]]

# The configuration first: without it, what needs it is not looked at.
_ALWAYS: dict[str, Check] = {
    "configuration": configuration,
    "policy": policy,
    "keys": secrets,
    "versions": versions,
    "disk": disk,
}
_CONFIGURED: dict[str, Check] = {
    "card": card,
    "device": device,
    "data": data,
    "ledger": ledger,
    "journal": journal,
    "budget": budget,
    "approvals": approvals,
    "coordinator": coordinator,
    "witness": witness,
}


class Diagnosis(BaseModel):
    """Everything that was found."""

    model_config = ConfigDict(frozen=True)

    state: Literal["ok", "warn", "fail"]
    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, findings: list[Finding]) -> Self:
        """The worst of the findings is the state."""
        levels = {finding.level for finding in findings}
        worst = next((level for level in ("fail", "warn") if level in levels), "ok")
        return cls.model_validate({"state": worst, "findings": findings})

    @property
    def failed(self) -> bool:
        """Whether the site cannot work as it is."""
        return self.state == "fail"

    def lines(self) -> Iterator[str]:
        """What people read."""
        for finding in self.findings:
            yield f"{finding.level:<5}{finding.check:<15}{finding.what}"
            if finding.fix is not None:
                yield f"{'':<20}→ {finding.fix}"


def examine(folder: SiteFolder) -> Diagnosis:
    """Run every check; one that cannot be done is a failure that says why."""
    findings = [found for name, check in _ALWAYS.items() for found in _run(name, check, folder)]
    if not any(found.level == "fail" for found in findings if found.check == "configuration"):
        findings += [
            found for name, check in _CONFIGURED.items() for found in _run(name, check, folder)
        ]
    return Diagnosis.of(findings)


def _run(name: str, check: Check, folder: SiteFolder) -> Iterator[Finding]:
    try:
        yield from check(folder)
    except TacitError as error:
        yield Finding.fail(name, f"{error.what}: {error.why}", error.fix)
    except OSError as error:
        why = error.strerror or type(error).__name__
        yield Finding.fail(name, f"it cannot be looked at: {why}", "run this as the site's owner")
