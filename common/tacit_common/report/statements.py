"""What a report says of privacy, in plain words and formally (docs/privacy.md 1).

The sentences stand here, beside the report that prints them, so that every run says the
same thing in the same words, and a verifier can say it again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal

from tacit_common.report import numbers
from tacit_common.report.claims import OperatingPoint

Unit = Literal["record", "subject"]


@dataclass(frozen=True)
class UnitWords:
    """How sentences speak of one unit of privacy."""

    one: str
    """In full: what one unit is."""
    noun: str
    nouns: str


_WORDS: dict[Unit, UnitWords] = {
    "record": UnitWords("one record", "record", "records"),
    "subject": UnitWords(
        "one subject (a person, say) with all of its records at this site", "subject", "subjects"
    ),
}


def unit_words(unit: Unit) -> UnitWords:
    """The words for a unit of privacy."""
    return _WORDS[unit]


# --- the statement ---------------------------------------------------------------------

NO_DIFFERENTIAL_PRIVACY_PLAIN = (
    "This run had no differential privacy: what the sites sent may reveal single records, "
    "and nothing limits how much."
)
NO_DIFFERENTIAL_PRIVACY_FORMAL = (
    "No differential privacy: the transcript of a site is not (ε, δ)-differentially private "
    "for any finite ε and any δ < 1."
)

LOCAL_ADVERSARY = (
    "the server, all other sites and every observer together, who choose each model that the "
    "site receives after seeing all that it sent before"
)
LOCAL_TRANSCRIPT = "every update and every probe answer that left the site, in all rounds"


def local_plain_statement(
    *, epsilon: float, delta: float, unit: Unit, trade_off: Sequence[OperatingPoint]
) -> str:
    """One sentence for a reader who has never heard of ε.

    `trade_off` is that of the same releases: it bounds a guess more sharply than ε and δ
    alone, where it has points.
    """
    bound = numbers.percent_at_most(
        min(membership_guess_bound(epsilon=epsilon, delta=delta), guess_bound(trade_off))
    )
    known, asked = {
        "record": ("all of its other records", "one particular record was used"),
        "subject": (
            "the records of everybody else there",
            "the records of one particular subject were used",
        ),
    }[unit]
    return (
        f"Whoever sees everything that a site sent, and already knows {known}, "
        f"can guess whether {asked}, and be right in at most "
        f"{bound} of cases where a coin would be right in 50{numbers.THIN_SPACE}%."
    )


def local_formal_statement(
    *, epsilon: float, delta: float, unit: Unit, records_per_subject: int | None
) -> str:
    """One sentence with unit, cap, adjacency, adversary, transcript, ε and δ."""
    cap = (
        ""
        if records_per_subject is None
        else f", of which a step uses {_at_most(unit, records_per_subject)},"
    )
    return (
        f"For every site k, the transcript of the site ({LOCAL_TRANSCRIPT}) is "
        f"(ε_k, δ)-differentially private for {_WORDS[unit].one}{cap} under zero-out adjacency, "
        f"against {LOCAL_ADVERSARY}; max_k ε_k ≤ {numbers.epsilon(epsilon)} at "
        f"δ = {numbers.power(delta)}."
    )


def membership_guess_bound(*, epsilon: float, delta: float) -> float:
    """The best possible rate of right guesses about one unit, where a coin is right in ½.

    Of two equally likely worlds, with and without the unit, an (ε, δ)-private output
    tells the right one with probability at most (e^ε + δ) / (e^ε + 1), where the edge of
    the privacy region of Kairouz, Oh and Viswanath (arXiv 1311.0776) has equal errors.
    """
    error = (1 - delta) / (1 + math.exp(min(epsilon, 700.0)))  # e^710 is not a float
    return 1 - error


def guess_bound(trade_off: Sequence[OperatingPoint]) -> float:
    """The same rate from the trade-off function: half of 1 + max (true − false positives).

    Between two points the function is concave, so it lies below what the lines through
    the points on either side say of it; 1 where there are fewer than two points.
    """
    points = [(p.false_positive_rate, p.largest_true_positive_rate) for p in trade_off]
    best = 0.0 if len(points) > 1 else 1.0
    for i, ((a, low), (b, high)) in enumerate(pairwise(points)):
        ceilings = [(0.0, high)]  # slope, and value at 0: it does not decrease
        if i > 0:
            ceilings.append(_line(points[i - 1], (a, low)))
        if i + 2 < len(points):
            ceilings.append(_line((b, high), points[i + 2]))
        crossings = [
            (right[1] - left[1]) / (left[0] - right[0])
            for left, right in combinations(ceilings, 2)
            if left[0] != right[0]
        ]
        for x in (a, b, *(x for x in crossings if a < x < b)):
            best = max(best, min(slope * x + start for slope, start in ceilings) - x)
    return min(1.0, (1 + best) / 2)


def _line(left: tuple[float, float], right: tuple[float, float]) -> tuple[float, float]:
    slope = (right[1] - left[1]) / (right[0] - left[0])
    return slope, left[1] - slope * left[0]


# --- what the statement rests on and what it covers ------------------------------------

LOCAL_SETTING = (
    "A central server and many sites. Nobody outside a site is trusted with its records: each "
    "site adds noise on its own machine before anything leaves it. The server and all other "
    "sites may be dishonest and may work together. A site has to trust its own staff, its own "
    "machine and its own copy of the software."
)

NONE_SETTING = (
    "A central server and many sites. The server sees what each site sent, as it is: whoever runs "
    "it has to be trusted with all that it may reveal."
)

LOCAL_ACCESSES_EXCLUDED = (
    "The site's own preparation of its data: importing, cleaning, removing duplicates, and "
    "choosing which records take part. Nothing of it is sent, and nothing of it is counted.",
    "What the site's own staff see on its own machine, such as its logs.",
)
SIMULATION_ACCESSES_EXCLUDED = (
    "The accuracy table, the verdicts drawn from it and the pictures of this report. They read "
    "records and labels of a public data set without privacy, which only a simulation may do.",
)


def local_accesses_covered(*, unit: Unit, has_probes: bool) -> tuple[str, ...]:
    """Every way in which records were read and counted."""
    words = _WORDS[unit]
    probes = ("Probes: the labelled records are read, and only a noisy sum of statistics leaves.",)
    return (
        f"Training: each step reads a secret random sample of {words.nouns}, and only a clipped "
        "and noisy sum of their gradients is used.",
        *(probes if has_probes else ()),
        "Work that failed after its budget was reserved, and everything else that is reserved "
        "in the site's ledger, whichever run it was for.",
    )


def local_outputs(*, has_probes: bool) -> tuple[str, ...]:
    """What left a site, by kind."""
    probes = ("For each probe, one vector of noisy statistics.",)
    return (
        "For each round that the site answered, one vector: how the parameters changed. It is "
        "made of noisy sums of gradients and of nothing else from the records.",
        *(probes if has_probes else ()),
        *_PUBLIC_OUTPUTS,
    )


def none_outputs(*, has_probes: bool) -> tuple[str, ...]:
    """What left a site without differential privacy, by kind."""
    probes = ("For each probe, one vector of statistics of the labelled records, without noise.",)
    return (
        "For each round that the site answered, one vector: how the parameters changed, without "
        "noise, and with it the mean training loss, unless the site’s policy keeps that back.",
        *(probes if has_probes else ()),
        *_PUBLIC_OUTPUTS,
    )


_PUBLIC_OUTPUTS = (
    "The site's name, its declared size and its version of the software: public constants.",
    "In place of an answer that it does not give: one code out of a fixed list.",
    "The head of its ledger: a counter, a hash and a signature.",
)


def local_not_covered(unit: Unit) -> tuple[str, ...]:
    """What the statement does not promise."""
    many = {
        "record": "A person with several records. The bound is for one record; for k records it "
        "is not simply k times ε, but more.",
        "subject": "Several subjects together, such as a family. The bound is for one subject; for "
        "k subjects it is not simply k times ε, but more.",
    }[unit]
    words = _WORDS[unit]
    elsewhere = (
        ()
        if unit == "record"
        else (
            "A person whose records the site has filed under several names, or who has records "
            "at several sites. Each of them counts as a subject of its own.",
        )
    )
    return (
        f"What many {words.nouns} have in common. Differential privacy hides the single "
        f"{words.noun}; it does not hide what a large group shows, because that is what "
        "training is for.",
        many,
        *elsewhere,
        "What a site makes known on purpose: its name, its declared size, that it took part, and "
        "when and how fast it answered.",
        "The last bits of floating-point gradients. They are formed for many records at once, and "
        "a server that crafts parameters to blow rounding up is not excluded by the proof.",
        "Other uses of the same records that are not in the ledgers behind these figures.",
        "That data were added at a site, or that two of its data sets share records, be it one. "
        "The number of the ledger's last row, which goes with every answer, and the figures of the "
        "site in this report may show it.",
        "Attacks on a site's machine or software, and a site whose software is not what it "
        "reviewed.",
    )


NONE_NOT_COVERED = ("Everything: no bound of any kind holds for what the sites sent.",)
SIMULATION_NOT_COVERED = (
    "Whoever ran the simulation. All records lay on one computer, so the figures say what a "
    "federation of these sites would reveal, not what this computer knew.",
)


# --- as implemented --------------------------------------------------------------------


def sampler(*, unit: Unit) -> str:
    """How units enter a step."""
    words = _WORDS[unit]
    return (
        f"Poisson sampling: every {words.noun} joins every step by its own secret coin flip, "
        "from an AES-256 generator keyed by the operating system. The views of a step come from a "
        "Mersenne Twister whose whole state is drawn from it anew. An empty sample still adds "
        "noise and still steps."
    )


NOISE = (
    "Gaussian noise from an AES-256 generator keyed by the operating system, and keyed anew "
    "after a fork. No seed controls it."
)
FLOATING_POINT = (
    "Gradients that are not finite count as zero before they are clipped. Norms and sums are in "
    "64-bit floats. The sum and its noise are rounded to a lattice with spacing C/(64·√d) for d "
    "parameters, so that the low bits of a sum are never released, and what rounding adds is "
    "part of the sensitivity. Gradients themselves are formed in 32-bit floats, many at once, "
    "and their last bits may depend on their neighbours in the batch: a server that crafts "
    "parameters to blow such bits up is not excluded by the proof."
)
TUNING = (
    "Every run that reserved budget at a site is part of that site's total, so choosing settings "
    "by trying them costs budget like any other run. Trials on the same records outside these "
    "ledgers are not counted. No setting was chosen by a private selection mechanism."
)
PROBE_MECHANISM = (
    "A sum over all labelled records of statistics whose joint norm is clipped, plus Gaussian "
    "noise. No sampling."
)


def training_mechanism(*, unit: Unit, records_per_subject: int | None) -> str:
    """What is summed, clipped and noised in a step."""
    if records_per_subject is None:
        each = "one gradient for each sampled record"
    else:
        each = (
            "one gradient for each sampled subject, formed from "
            f"{_at_most(unit, records_per_subject)}"
        )
    return (
        f"A sum of {each}, each clipped to L2 norm C, plus Gaussian noise. The sum is divided by "
        "a public constant afterwards."
    )


def _at_most(unit: Unit, records_per_subject: int) -> str:
    if unit == "record" or records_per_subject == 1:
        return "at most one record"
    return f"at most {numbers.count(records_per_subject)} records"


# --- what the figures mean -------------------------------------------------------------


def attack_sentence(*, false_positive_rate: float, largest_true_positive_rate: float) -> str:
    """A point of the trade-off function for a reader who has never heard of it."""
    share = numbers.out_of_hundred_at_most(largest_true_positive_rate)
    found = f"finds at most {share} in 100 members"
    if share == "100":
        found = "may find all members, as far as this bound says"
    wrong = numbers.one_in(false_positive_rate)
    return f"An attacker who is wrong about at most {wrong} non-members {found}."


def members_explained(*, unit: Unit) -> str:
    """Who the members of `attack_sentence` are."""
    words = _WORDS[unit]
    return (
        f"A member is a {words.noun} whose data was used, a non-member one whose data was not. "
        f"The attacker sees all that a site sent, knows everything about the {words.noun} in "
        "question and about all others, and tells which of the two it is. No attack of any kind, "
        "known or yet to be found, does better than this."
    )


def group_sentence(*, unit: Unit) -> str:
    """What privacy of a group means."""
    words = _WORDS[unit]
    example = {
        "record": "such as several scans of one patient",
        "subject": "such as the members of a family",
    }[unit]
    return (
        f"If several {words.nouns} belong together, {example}, what holds for all of them at "
        f"once is weaker than what holds for one. The ε of k {words.nouns} is not k times the ε "
        "of one: it is more."
    )


def delta_sentence(*, delta: float) -> str:
    """What δ means, loosely."""
    return (
        f"Loosely: the promise behind ε may fail, with a chance of at most {numbers.one_in(delta)}."
    )
