"""What a report claims of a run's privacy: the statement, its figures, what it rests on.

The list of what must be said follows How to DP-fy ML, section 5.3 (Ponomareva et al.
2023, arXiv 2303.00654), and NIST SP 800-226.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from tacit_common.privacy.events import PrivacyEvent
from tacit_common.report.parts import Count, Digest, Epsilon, Part, Share, Text


class Assumption(Part):
    """Something that the privacy statement rests on."""

    text: Text
    held: bool | None = Field(description="None where it cannot be checked.")
    why: Text


class AccountantFigure(Part):
    """ε of the site that spent most, by one method; the statement uses the first one."""

    method: Literal["PLD", "RDP", "PRV"]
    epsilon: Epsilon
    software: Text
    discretisation: Text = Field(description="Grid of losses, orders or error bound.")


class Release(Part):
    """One mechanism of the run, and how often a site applies it."""

    name: Text = Field(description="'training' or 'probe 0 before'.")
    mechanism: Text = Field(description="In words: what is summed, clipped and noised.")
    event: PrivacyEvent = Field(description="What accounting needs: rate, noise multiplier, steps.")
    l2_clip_norm: float = Field(gt=0, description="Bound C on what is clipped.")
    l2_sensitivity: float = Field(
        gt=0,
        description="What one unit changes, with the rounding to the lattice. A site adds what "
        "floats may round in its sums, at most 2⁻¹³ of C, and noises that much more.",
    )
    noise_stddev: float = Field(gt=0, description="Of each coordinate of the sum, at least.")


class CurvePoint(Part):
    """ε at one δ."""

    delta: float = Field(gt=0, lt=1)
    epsilon: Epsilon


class OperatingPoint(Part):
    """The best attack at one false positive rate: no attacker finds more members."""

    false_positive_rate: Share
    largest_true_positive_rate: Share


class GroupFigure(Part):
    """What holds for k units together, at the report's δ."""

    units: int = Field(ge=1)
    epsilon: Epsilon


class Audit(Part):
    """An empirical lower bound (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846)."""

    claimed_epsilon: float = Field(gt=0)
    epsilon_lower_bound: Epsilon
    confidence: float = Field(gt=0, lt=1)
    canaries: int = Field(ge=1)
    guesses: Count
    right_guesses: Count
    gradient_path: Text = Field(description="What was audited.")

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if not self.right_guesses <= self.guesses <= self.canaries:
            raise ValueError("right guesses are guesses, and guesses are about canaries")
        return self


class LocalPrivacy(Part):
    """Every site made what it sent private before sending it."""

    mode: Literal["local"]
    plain_statement: Text
    formal_statement: Text
    setting: Text = Field(description="Who is trusted with what.")
    accesses_covered: tuple[Text, ...] = Field(min_length=1)
    accesses_excluded: tuple[Text, ...] = Field(min_length=1)
    outputs: tuple[Text, ...] = Field(min_length=1, description="What left a site.")
    unit: Literal["record", "subject"]
    records_per_subject: int | None = Field(ge=1, description="Contribution cap m.")
    adjacency: Literal["zero-out"]
    adversary: Text
    transcript: Text = Field(description="What of a site's messages the statement covers.")
    epsilon_target: float = Field(gt=0, description="Budget of the run at each site.")
    epsilon_spent: Epsilon = Field(
        description="The largest over sites: of the total where a site gave its account, else of "
        "what this run may have cost."
    )
    delta: float = Field(gt=0, lt=1)
    releases: tuple[Release, ...] = Field(min_length=1)
    sampler: Text = Field(description="As implemented.")
    noise: Text = Field(description="As implemented.")
    floating_point: Text = Field(description="As implemented.")
    accountants: tuple[AccountantFigure, ...] = Field(min_length=1)
    curve: tuple[CurvePoint, ...] = Field(
        min_length=2, description="ε for δ from 1e-12 to 1e-3, at the site that spent most."
    )
    trade_off: tuple[OperatingPoint, ...] = Field(
        min_length=2, description="1 − f(α) for the same site, from α = 0 to 1."
    )
    groups: tuple[GroupFigure, ...] = Field(min_length=1)
    tuning: Text = Field(description="What choosing the settings has cost.")
    assumptions: tuple[Assumption, ...]
    not_covered: tuple[Text, ...] = Field(min_length=1)
    audit: Audit | None

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if (self.unit == "subject") != (self.records_per_subject is not None):
            raise ValueError("a subject has a contribution cap, and a record has none")
        deltas = [point.delta for point in self.curve]
        if deltas != sorted(set(deltas)):
            raise ValueError("the curve's δ do not increase")
        rates = [point.false_positive_rate for point in self.trade_off]
        if rates != sorted(set(rates)):
            raise ValueError("the trade-off's false positive rates do not increase")
        if self.accountants[0].epsilon != self.epsilon_spent:
            raise ValueError("epsilon_spent is not the first accountant's figure")
        if self.audit is not None and self.audit.epsilon_lower_bound > self.audit.claimed_epsilon:
            raise ValueError("an audit found more than is claimed: this may not be released")
        return self


class NoPrivacy(Part):
    """No differential privacy, said in full."""

    mode: Literal["none"]
    statement: Literal["no differential privacy"] = "no differential privacy"
    plain_statement: Text
    formal_statement: Text
    setting: Text = Field(description="Who is trusted with what.")
    sampling_rate: float = Field(gt=0, le=1)
    steps: Count = Field(description="Steps that the whole plan takes at a site.")
    outputs: tuple[Text, ...] = Field(min_length=1, description="What left a site.")
    assumptions: tuple[Assumption, ...]
    not_covered: tuple[Text, ...] = Field(min_length=1)


class Signature(Part):
    """Who stands for the report."""

    signer: Literal["coordinator"]
    public_key: Digest
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")
