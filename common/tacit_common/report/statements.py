"""What a mode of privacy states, in plain words and formally (docs/privacy.md 1).

The sentences stand here, beside the report that prints them, so that every run says the
same thing in the same words.
"""

import math

from tacit_common.report import numbers

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

LOCAL_NOT_COVERED = (
    "What many records have in common. Differential privacy hides the single record; it does "
    "not hide what a group of records shows together.",
    "A person with several records. The bound is for one record; for k records it is not "
    "simply k times ε, but more.",
    "What a site makes known on purpose: its name, its declared number of records, that it took "
    "part, and when it answered.",
    "The last bits of floating-point gradients. They are formed for many records at once, and a "
    "server that crafts parameters to blow rounding up is not excluded by the proof.",
    "Other uses of the same records: earlier runs, or trials of other settings, that are not in "
    "the ledgers behind these figures.",
)
NONE_NOT_COVERED = ("Everything: no bound of any kind holds for what the sites sent.",)
SIMULATION_NOT_COVERED = (
    "Whoever ran the simulation. All records lay on one computer, so the figures say what a "
    "federation of these sites would reveal, not what this computer knew.",
)


def membership_guess_bound(*, epsilon: float, delta: float) -> float:
    """The best possible rate of right guesses about one record, where a coin is right in ½.

    Of two equally likely worlds, with and without the record, an (ε, δ)-private output
    tells the right one with probability at most (e^ε + δ) / (e^ε + 1), where the edge of
    the privacy region of Kairouz, Oh and Viswanath (arXiv 1311.0776) has equal errors.
    """
    error = (1 - delta) / (1 + math.exp(min(epsilon, 700.0)))  # e^710 is not a float
    return 1 - error


def local_plain_statement(*, epsilon: float, delta: float) -> str:
    """One sentence for a reader who has never heard of ε."""
    bound = numbers.percent_at_most(membership_guess_bound(epsilon=epsilon, delta=delta))
    return (
        "Whoever sees everything that a site sent, and already knows all of its other records, "
        "can guess whether one particular record was used, and be right in at most "
        f"{bound} of cases where a coin would be right in 50{numbers.THIN_SPACE}%."
    )


def local_formal_statement(*, epsilon: float, delta: float) -> str:
    """One sentence with unit, adjacency, adversary, transcript, ε and δ."""
    return (
        f"For every site k, the transcript of the site ({LOCAL_TRANSCRIPT}) is "
        "(ε_k, δ)-differentially private for one record under zero-out adjacency, against "
        f"{LOCAL_ADVERSARY}; max_k ε_k ≤ {numbers.epsilon(epsilon)} at "
        f"δ = {numbers.power(delta)}."
    )
