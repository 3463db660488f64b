"""What the report of a deployed run says where a simulation's says something else.

One sentence a claim, and each says what holds, not what is hoped for.
"""

from tacit_common.report import numbers
from tacit_common.report.claims import Assumption

# --- what holds between machines -------------------------------------------------------

TRANSPORT = (
    "Messages travel over TLS, and each is signed by its sender with a key that the other side "
    "learnt when the site was enrolled: a site answers its coordinator alone, and the coordinator "
    "counts the answers of its own sites alone. A site runs the program that its operator "
    "installed, and nothing that the server sends."
)
LOCAL_TRANSPORT = (
    f"{TRANSPORT} The bound on what a site reveals rests on neither TLS nor the server."
)
NONE_TRANSPORT = f"{TRANSPORT} Nothing but TLS keeps what a site sent from others on the way."

OUTPUTS = (
    "After the last round, and only where the site’s policy allows it: the account of its ledger "
    "that this report prints. It follows from rows that hold no record and no count of records.",
    "Under each message, the site’s signature.",
)

NOT_COVERED = (
    "Sites that this report does not list: those that were away or did not join, and whomever "
    "the server leaves out. Such a site can show its own ledger and journal.",
    "What the server makes of the answers. It may leave answers out or spoil the encoder; it "
    "cannot lower a site’s noise, nor get a second answer for one that was paid.",
    "How long a site computes. It depends a little on the secret samples, and TLS does not hide "
    "it from the server or from whoever watches the network.",
)

# --- what it rests on ------------------------------------------------------------------

ONE_SITE = Assumption(
    text="No unit (record or subject) is held by two sites.",
    held=None,
    why="Each site tags its records under a key of its own, so nobody can compare them. What two "
    "sites reveal of a unit that both hold adds up.",
)
SEPARABLE = Assumption(
    text="The loss of a unit depends on that unit alone.",
    held=True,
    why="A site's program checks it before it pays, on the path that clips, and refuses a study "
    "that fails. So it held wherever the reviewed program ran.",
)
REVIEWED_PROGRAM = Assumption(
    text="Every site ran the program that its operator had reviewed.",
    held=None,
    why="Only the site can tell that what is installed there is what was reviewed.",
)
KEYS = Assumption(
    text="Every key belongs to the party that it is taken for.",
    held=None,
    why="Keys were exchanged when a site was enrolled, and every message was checked against "
    "them. Whether the two sides compared fingerprints by another way, only they know.",
)
NO_ROLLBACK = Assumption(
    text="No site spent its budget twice from an older copy of its ledger.",
    held=None,
    why="The coordinator keeps the newest head of each ledger from run to run, and counted no "
    "answer from one that was behind what it knew when the run began, or saw in it. What it never "
    "saw, or saw in a run at the same time, it cannot tell: that takes an independent witness, "
    "which each site chooses for itself.",
)
JOURNAL = Assumption(
    text="Nothing left a site but what is listed here.",
    held=None,
    why="Each site keeps a journal of every request, of what was answered and of how many bytes "
    "left. It stays at the site, where its operator can compare it with this report.",
)


# --- sites that gave no account --------------------------------------------------------


def without_account_in_plain(sites: int) -> str:
    """What the plain statement adds where sites gave no account."""
    if not sites:
        return ""
    number, them = _number(sites), "it" if sites == 1 else "them"
    return (
        f" {number[0].upper()}{number[1:]} gave no account of other runs; for {them} this holds "
        "of this run alone."
    )


def without_account_formally(sites: int) -> str:
    """What the formal statement adds."""
    if not sites:
        return ""
    return (
        f" At the {_number(sites)} without an account, ε_k is of this run alone, as planned; at "
        "every other site it is of all that its ledger holds."
    )


def not_covered_without_account(sites: int) -> tuple[str, ...]:
    """What is not covered."""
    if not sites:
        return ()
    return (
        f"What other runs have revealed at the {_number(sites)} that gave no account. The total "
        "there may be larger than the ε of this report; only the site’s own ledger tells.",
    )


def accesses_without_account(sites: int) -> tuple[str, ...]:
    """Which uses of records were counted."""
    if not sites:
        return ()
    return (
        f"At the {_number(sites)} that gave no account, the whole of this run as it was planned "
        "is counted, and nothing else.",
    )


def _number(sites: int) -> str:
    return "one site" if sites == 1 else f"{numbers.in_words(sites).lower()} sites"
