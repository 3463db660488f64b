"""The sections of the page that state what a run could reveal, and what that rests on."""

from collections.abc import Iterator

from tacit_common.report import numbers, statements
from tacit_common.report.claims import Assumption, LocalPrivacy, NoPrivacy
from tacit_common.report.page.blocks import (
    Block,
    Bullets,
    Cell,
    Check,
    Checks,
    Column,
    Fact,
    Facts,
    Heading,
    Paragraph,
    Quote,
    Row,
    Section,
    Table,
)

# --- what could be revealed ------------------------------------------------------------


def reveal(privacy: LocalPrivacy, *, all_gave_account: bool) -> Section:
    """The statement, in plain words, formally, and claim by claim."""
    return Section(
        "reveal",
        "What the training could reveal",
        (
            Paragraph(privacy.plain_statement, "lead"),
            Paragraph(
                "A smaller ε reveals less. One common reading calls up to 1 strong and up to 10 "
                "reasonable; above 10 the bound alone says little (How to DP-fy ML, arXiv "
                "2303.00654). It limits the worst case; known attacks usually learn less."
            ),
            Quote("Formally", privacy.formal_statement),
            Table(
                "Claim by claim.",
                (
                    Column("Claim", share=1.0),
                    Column("In this run", share=1.7),
                    Column("In plain words", share=2.6),
                ),
                tuple(
                    Row((Cell(claim), Cell(value), Cell(words)))
                    for claim, value, words in _claims(privacy, all_gave_account)
                ),
            ),
            Heading("Who is trusted with what"),
            Paragraph(privacy.setting),
        ),
    )


def _claims(privacy: LocalPrivacy, all_gave_account: bool) -> Iterator[tuple[str, str, str]]:
    lacking = "" if all_gave_account else ", or this run as planned where it gave no account"
    words = statements.unit_words(privacy.unit)
    yield (
        "Unit",
        words.one,
        f"The promise is made to every single {words.noun} of every site.",
    )
    if privacy.records_per_subject is not None:
        yield (
            "Contribution cap m",
            numbers.count(privacy.records_per_subject),
            "A step of training uses no more records of one person than this, however many the "
            "site holds.",
        )
    yield (
        "Adjacency",
        privacy.adjacency,
        f"What a site sent is compared with what it would have sent if this {words.noun} had "
        f"contributed nothing. The number of {words.nouns} may be known.",
    )
    yield (
        "ε spent",
        numbers.epsilon(privacy.epsilon_spent),
        f"The largest of all sites, counting everything that its ledger holds{lacking}. The "
        f"smaller it is, the less anybody can learn about one {words.noun}.",
    )
    yield (
        "ε allowed to this run",
        numbers.epsilon(privacy.epsilon_target),
        "What the study may cost at each site, probes included.",
    )
    yield "δ", numbers.power(privacy.delta), statements.delta_sentence(delta=privacy.delta)
    yield (
        "Attacker",
        privacy.adversary,
        "Nobody outside a site has to be trusted for the promise to hold.",
    )
    yield (
        "Covered",
        privacy.transcript,
        "All of it together, and whatever is computed from it later, such as the encoder.",
    )


def reveal_all(privacy: NoPrivacy) -> Section:
    """The same without differential privacy."""
    return Section(
        "reveal",
        "What the training could reveal",
        (
            Paragraph(privacy.plain_statement, "lead"),
            Quote("Formally", privacy.formal_statement),
            Facts(
                (
                    Fact("Mode", "none", privacy.statement),
                    Fact("Sampling rate q", numbers.significant(privacy.sampling_rate)),
                    Fact("Steps at a site", numbers.count(privacy.steps), "in the whole plan"),
                )
            ),
            Heading("Who is trusted with what"),
            Paragraph(privacy.setting),
        ),
    )


# --- what it rests on and leaves out ---------------------------------------------------


def limits(privacy: LocalPrivacy) -> Section:
    """Assumptions, and everything that is not covered."""
    return Section(
        "limits",
        "What this rests on, and what it leaves out",
        (
            *_assumptions(privacy.assumptions),
            Heading("Not covered"),
            Bullets(privacy.not_covered),
            Heading("Uses of the records that were counted"),
            Bullets(privacy.accesses_covered),
            Heading("Uses of the records that were not counted"),
            Bullets(privacy.accesses_excluded),
            Heading("What left a site"),
            Bullets(privacy.outputs),
        ),
    )


def limits_without(privacy: NoPrivacy) -> Section:
    """The same without differential privacy."""
    return Section(
        "limits",
        "What this rests on, and what it leaves out",
        (
            *_assumptions(privacy.assumptions),
            Heading("Not covered"),
            Bullets(privacy.not_covered),
            Heading("What left a site"),
            Bullets(privacy.outputs),
        ),
    )


def _assumptions(assumptions: tuple[Assumption, ...]) -> Iterator[Block]:
    if assumptions:
        yield Heading("Assumptions")
        yield Checks(tuple(Check(a.text, a.held, a.why) for a in assumptions))
