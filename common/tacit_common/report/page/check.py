"""The sections of the page that say who took part, and how to check the report."""

from collections.abc import Iterator, Sequence

from tacit_common.report import numbers
from tacit_common.report.claims import Signature
from tacit_common.report.page.blocks import (
    Block,
    Cell,
    Column,
    Command,
    Fact,
    Facts,
    Paragraph,
    Row,
    Section,
    Table,
)
from tacit_common.report.schema import Report

SHORT_HASH = 16
VERIFY = "tacit report verify report.json --ledger EXPORT"
EXPORT = "tacit site budget FOLDER --export EXPORT"


# --- cohorts ---------------------------------------------------------------------------


def cohorts(report: Report) -> Section:
    """Who took part, and what secure aggregation would have needed."""
    seen = report.cohorts
    facts = [
        Fact("Sites registered", numbers.count(seen.registered)),
        Fact("Asked in a round", numbers.count(seen.asked_per_round)),
        Fact("Quorum", numbers.count(seen.quorum), "answers that a round needs"),
        Fact("Smallest cohort that answered", numbers.count(seen.smallest_answered)),
        Fact("Worst dropout", numbers.percent(seen.worst_dropout), "of the sites asked"),
    ]
    if seen.threshold is None and seen.collusion_bound is None:
        facts.append(Fact("Secure aggregation", "none", "the server sees each site’s update"))
    if seen.threshold is not None:
        facts.append(Fact("Threshold", numbers.count(seen.threshold), "noise shares that arrive"))
    if seen.collusion_bound is not None:
        facts.append(
            Fact("Collusion bound", numbers.count(seen.collusion_bound), "sites with the server")
        )
    return Section("cohorts", "Who took part", (Facts(tuple(facts)),))


# --- how to check the report -----------------------------------------------------------


def check(report: Report, signatures: Sequence[Signature]) -> Section:
    """Ledger heads, signatures, and what to type."""
    return Section(
        "check",
        "How to check this report",
        (
            Paragraph(
                "Ask each site for an export of its ledger, which holds no record and no count "
                "of records. Then, without any network, recompute every figure and check every "
                "signature:"
            ),
            Command(VERIFY),
            Paragraph(
                "The option may be given once for each site. A site makes its export with:",
                "small",
            ),
            Command(EXPORT),
            _ledger_table(report),
            *_signatures(signatures),
        ),
    )


def _ledger_table(report: Report) -> Table:
    older = (
        ""
        if all(site.is_disclosed for site in report.sites)
        else " Of a site without an account it is the newest that the coordinator has seen."
    )
    return Table(
        "Where each site’s ledger stood, as the site signed it: its newest row, the first "
        f"{SHORT_HASH} of 64 characters of that row’s hash, and of the site’s public key. All "
        f"characters are in report.json.{older}",
        (
            Column("Site", share=1.4),
            Column("Row", is_number=True, share=0.6),
            Column("Hash", share=1.5),
            Column("Public key", share=1.5),
        ),
        tuple(
            Row(
                (
                    Cell(site.name),
                    Cell(numbers.count(site.ledger.seq)),
                    Cell(site.ledger.hash[:SHORT_HASH], is_code=True),
                    Cell(site.ledger.public_key[:SHORT_HASH], is_code=True),
                )
            )
            for site in report.sites
        ),
    )


def _signatures(signatures: Sequence[Signature]) -> Iterator[Block]:
    if not signatures:
        yield Paragraph(
            "The report that this page was drawn from is not signed: it is as trustworthy as "
            "whoever handed it to you."
        )
        return
    yield Table(
        "Who signed the report (Ed25519). A signature shows that nothing was changed since; that "
        "the key is the coordinator’s has to be learnt from the coordinator.",
        (Column("Signer", share=0.8), Column("Public key", share=2), Column("Signature", share=3)),
        tuple(
            Row(
                (
                    Cell(s.signer),
                    Cell(s.public_key, is_code=True),
                    Cell(s.signature, is_code=True),
                )
            )
            for s in signatures
        ),
    )
