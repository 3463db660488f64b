"""Every error that Tacit raises on purpose.

    TacitError                      exit code 1: the work could not be done
    ├── UsageError                  exit code 2: the request has to change
    │   ├── StudyError              a study file, recipe or --set override is wrong
    │   ├── PluginError             a plug-in cannot be found or breaks its contract
    │   ├── PrivacyConfigError      the privacy plan is not sound, or cannot be met
    │   └── DataError               a data set cannot be opened or does not fit
    ├── UnreadableRecordError       one record of an opened data set cannot be decoded
    ├── NonFiniteUpdateError        an update or a parameter holds NaN or infinity
    ├── IdentityError               a key or a signature cannot be used or trusted
    ├── CheckpointError             a checkpoint or an encoder on disk cannot be trusted
    ├── LedgerError                 a site's ledger cannot be trusted
    ├── QuorumError                 too few sites answered a round
    ├── WireError                   a message is not one that this version understands
    ├── LinkError                   a machine cannot be reached, or turns this one away
    └── SiteRefusal                 a site declines a request; carries a fixed code only

Each says what happened, why, and what to do. No message ever contains a value
taken from a record: a site's text could otherwise carry data to the server.
"""

from enum import StrEnum
from typing import ClassVar


class TacitError(Exception):
    """What happened, why, and what to do about it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, why: str, fix: str) -> None:
        super().__init__(f"{what}: {why}; {fix}")
        self.what = what
        self.why = why
        self.fix = fix


class UsageError(TacitError):
    """The request itself has to change before it can succeed."""

    exit_code = 2


class StudyError(UsageError):
    """A study file, a recipe name or an override is wrong."""


class PluginError(UsageError):
    """A plug-in cannot be found, cannot be imported, or breaks its contract."""


class PrivacyConfigError(UsageError):
    """The privacy plan is not sound for this objective, or cannot be met."""


class DataError(UsageError):
    """A data set cannot be opened, or does not fit the encoder."""


class UnreadableRecordError(TacitError):
    """One record cannot be decoded."""


class NonFiniteUpdateError(TacitError):
    """An update or a parameter vector holds NaN or infinity."""


class IdentityError(TacitError):
    """A key cannot be read, or a signature does not fit what it stands under."""


class CheckpointError(TacitError):
    """A checkpoint or an exported encoder is damaged or of another study."""


class LedgerError(TacitError):
    """A site's ledger is damaged, locked, or contradicts itself."""


class QuorumError(TacitError):
    """Too few sites answered for a round to count."""


class WireError(TacitError):
    """A message does not follow the schema of this version."""


class LinkError(TacitError):
    """Another machine cannot be reached, or turns this one away."""

    def __init__(self, what: str, *, why: str, fix: str, status: int | None = None) -> None:
        super().__init__(what, why=why, fix=fix)
        self.status = status  # of HTTP, where there was an answer


class RefusalCode(StrEnum):
    """Why a site did not do what it was asked: everything that it may say about it.

    A code never depends on the content of a record.
    """

    POLICY = "policy"  # the plan asks for more than the site's policy allows
    BUDGET = "budget"  # the ledger has too little left for the plan
    OBJECTIVE = "objective"  # the objective is not legal under the plan's mode and unit
    PLUGIN = "plugin"  # the plan names a plug-in that this site has not installed
    MESSAGE = "message"  # the message is malformed or of another version
    REPLAY = "replay"  # this was answered before, and the answer is no longer kept
    SIGNATURE = "signature"  # the request is not signed by the coordinator that the site knows
    APPROVAL = "approval"  # a person at the site has not approved this study, or not yet
    HOURS = "hours"  # the site works at other hours
    WITNESS = "witness"  # the witness of the site's ledger cannot be asked, or objects
    LEDGER = "ledger"  # the site's ledger or key cannot be used or trusted
    DATA = "data"  # the site's data cannot be opened or decoded
    DIVERGED = "diverged"  # local training gave NaN or infinity
    INTERNAL = "internal"  # anything else; details stay in the site's own log


class SiteRefusal(TacitError):  # noqa: N818 - a refusal is an answer, not a mishap
    """A site declines a request. Only `code` ever leaves the site."""

    def __init__(self, code: RefusalCode, *, why: str, fix: str) -> None:
        super().__init__(f"the site refuses ({code.value})", why=why, fix=fix)
        self.code = code


def refusal_code(error: Exception) -> RefusalCode:
    """All that may leave a site of an error: its text could hold data."""
    if isinstance(error, SiteRefusal):
        return error.code
    codes: list[tuple[type[Exception], RefusalCode]] = [
        (PluginError, RefusalCode.PLUGIN),
        (PrivacyConfigError, RefusalCode.OBJECTIVE),
        (LedgerError, RefusalCode.LEDGER),
        (IdentityError, RefusalCode.LEDGER),
        (DataError, RefusalCode.DATA),
        (UnreadableRecordError, RefusalCode.DATA),
        (WireError, RefusalCode.MESSAGE),
        (NonFiniteUpdateError, RefusalCode.DIVERGED),
    ]
    return next((code for kind, code in codes if isinstance(error, kind)), RefusalCode.INTERNAL)
