"""What a coordinator can say of its sites and runs at this moment."""

from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from tacit_common.errors import LinkError, RefusalCode
from tacit_common.flower.control import Control, NodeState, node_public_key
from tacit_common.study_file import load_study
from tacit_server.deployment.folder import ServerFolder
from tacit_server.deployment.roster import Roster
from tacit_server.deployment.run_record import STATUS, SUBMISSION, Status, Submission, Trouble
from tacit_server.exchange import Failure
from tacit_server.run_log import AccountsCollected, RoundFinished, RunStarted, read_events

MEANING: dict[str, str] = {
    RefusalCode.POLICY: "its policy does not allow what was asked",
    RefusalCode.BUDGET: "its privacy budget has too little left",
    RefusalCode.OBJECTIVE: "the objective is not legal under this mode and unit",
    RefusalCode.PLUGIN: "it has not installed a plug-in that the study names",
    RefusalCode.MESSAGE: "it does not understand the message; is it of another version?",
    RefusalCode.REPLAY: "it has heard this request before",
    RefusalCode.SIGNATURE: "the request is not signed by the coordinator that it knows",
    RefusalCode.APPROVAL: "a person there has not approved the study yet",
    RefusalCode.HOURS: "it works at other hours",
    RefusalCode.WITNESS: "the witness of its ledger objects, or cannot be asked",
    RefusalCode.LEDGER: "its ledger or a key cannot be used or trusted",
    RefusalCode.DATA: "its data cannot be opened or decoded",
    RefusalCode.DIVERGED: "its training gave NaN or infinity",
    RefusalCode.INTERNAL: "something failed there; its own log says what",
    Failure.NO_ANSWER: "nothing came back in time",
    Failure.NODE_ERROR: "its connection was lost before it had answered",
    Failure.UNUSABLE_REPLY: "its answer is not one of this version, or not of this study",
    Failure.NOT_ENROLLED: "it is not enrolled any more",
    Failure.UNTRUSTED_SENDER: "its own key did not sign the answer",
    Failure.UNTRUSTED_LEDGER: "its ledger was rolled back or forked, or nothing signed shows it",
    Failure.NON_FINITE_UPDATE: "its update holds NaN or infinity",
    Failure.OUTSIZED_UPDATE: "its update is too large to be a step of training",
}
"""Every code of a site (it refused), and of the exchange with it (it gave nothing usable)."""


def in_words(code: str) -> str:
    """What a code of a site, or of the exchange with it, means."""
    return MEANING.get(code, "a code that this version does not know")


def is_refusal(code: str) -> bool:
    """Whether the site itself said it."""
    return code in list(RefusalCode)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class SiteStatus(_Part):
    """An enrolled site."""

    site: str
    online: bool | None = Field(description="None while the SuperLink is not running.")
    last_heartbeat: datetime | None = Field(description="None if it was never seen.")


class SpentAtSite(_Part):
    """Of everything ever released by a site, as it says itself."""

    epsilon: float | None
    cap: float | None


class RunStatus(_Part):
    """A run, as its folder tells."""

    name: str
    submitted: datetime
    stage: str
    doing: str
    done: int
    total: int
    rounds_done: int
    rounds: int | None = Field(description="None before it has begun.")
    quorum: int | None = Field(description="How many must answer a round; None before it began.")
    sites_wanted: int
    joined: tuple[str, ...]
    refused: dict[str, str] = Field(description="Site to code, at the last meeting or round.")
    answered_last: tuple[str, ...] = Field(description="Who answered the last round.")
    epsilon: float | None = Field(description="ε of a site that joined every round so far.")
    accounts: dict[str, SpentAtSite] = Field(
        description="What a site says of itself after the last round, if its policy lets it."
    )
    updated: datetime
    trouble: Trouble | None


class ServerStatus(_Part):
    """Everything at one moment."""

    at: datetime
    superlink: bool = Field(description="Whether the SuperLink answers.")
    sites: tuple[SiteStatus, ...]
    runs: tuple[RunStatus, ...]


def status_of(folder: ServerFolder) -> ServerStatus:
    """Look at roster, SuperLink and runs.

    Raises:
        UsageError, IdentityError, CheckpointError: a file in the folder cannot be read.
    """
    nodes = _nodes(folder)
    return ServerStatus(
        at=datetime.now(UTC),
        superlink=nodes is not None,
        sites=tuple(_site(site, key, nodes) for site, key in _enrolled(folder)),
        runs=tuple(run_status(path.parent) for path in sorted(folder.runs.glob("*/" + SUBMISSION))),
    )


def run_status(run: Path) -> RunStatus:
    """Look at one run.

    Raises:
        CheckpointError: a file in its folder cannot be read.
    """
    submission, status = Submission.read(run / SUBMISSION), Status.read(run / STATUS)
    log = run / "events.jsonl"
    events = read_events(log) if log.is_file() else []
    started = next((event for event in events if isinstance(event, RunStarted)), None)
    rounds = [event for event in events if isinstance(event, RoundFinished)]
    last = rounds[-1] if rounds else None
    told = next((event for event in events if isinstance(event, AccountsCollected)), None)
    accounts = {} if told is None else told.accounts
    return RunStatus(
        name=run.name,
        submitted=submission.at,
        stage=status.stage,
        doing=status.doing,
        done=status.done,
        total=status.total,
        rounds_done=len(rounds),
        rounds=None if started is None else started.rounds,
        quorum=None if started is None else _quorum(run, len(started.sites)),
        sites_wanted=submission.sites,
        joined=status.joined,
        refused={**status.refused, **({} if last is None else last.failed)},
        answered_last=() if last is None else tuple(last.answered),
        epsilon=None if last is None else last.epsilon,
        accounts={
            site: SpentAtSite(epsilon=account.epsilon_total, cap=account.epsilon_cap)
            for site, account in accounts.items()
        },
        updated=status.at,
        trouble=status.trouble,
    )


def _quorum(run: Path, sites: int) -> int:
    federation = load_study(run / "study.toml").federation
    return federation.quorum_of(federation.asked_of(sites))


def _enrolled(folder: ServerFolder) -> list[tuple[str, bytes]]:
    sites = Roster(folder.roster).sites
    return [(name, node_public_key(site.card.node_key)) for name, site in sites.items()]


def _nodes(folder: ServerFolder) -> dict[bytes, NodeState] | None:
    address, ca = folder.config().superlink_address, folder.ca_certificate.read_bytes()
    try:
        with Control(address, ca) as control:
            return {node.public_key: node for node in control.nodes()}
    except LinkError:
        return None


def _site(name: str, key: bytes, nodes: dict[bytes, NodeState] | None) -> SiteStatus:
    node = None if nodes is None else nodes.get(key)
    heard = None if node is None else node.last_heartbeat
    return SiteStatus(
        site=name,
        online=None if nodes is None else node is not None and node.online,
        last_heartbeat=None if heard is None else datetime.fromtimestamp(heard, UTC),
    )
