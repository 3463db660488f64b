"""What a report says of its sites and rounds: who took part, what it cost them, what came."""

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from tacit_common.errors import RefusalCode
from tacit_common.ledger_chain import SignedHead
from tacit_common.privacy.events import PrivacyEvent
from tacit_common.report.parts import ROUNDING, Count, Epsilon, Part, Share, SiteName, Text

if TYPE_CHECKING:
    from tacit_common.report.account import SiteAccount


class SiteReport(Part):
    """One data site, from the account of its own ledger. The ε are None without privacy.

    A site need not give its account, and may be away when it is asked. Then there is what the
    coordinator knows by itself: the rounds that the site answered, the newest head that the
    site signed, and what the study plans, which bounds the cost of this run if the coordinator
    asked for nothing else. That it did not, the site's ledger shows to who has it.
    """

    name: SiteName
    declared_units: int = Field(ge=1, description="Public; not the number that it holds.")
    rounds_answered: Count
    account: Literal["disclosed", "withheld", "missing"] = Field(
        description="Whether the figures are the site's own, or the site refused to give them, "
        "or sent nothing that could be used."
    )
    atoms: tuple[Text, ...] = Field(description="Parts of its data that this run touched.")
    spent: tuple[PrivacyEvent, ...] = Field(
        description="Everything ever reserved of the atom that was charged most, equal steps "
        "taken together: what epsilon_total is composed from. Without an account: everything "
        "that the study plans."
    )
    epsilon_after_round: tuple[Epsilon, ...] | None = Field(
        description="Total ε spent when round 1, 2, … was over, at the report's δ."
    )
    epsilon_run: Epsilon | None = Field(
        description="Of this run alone, by PLD, at the report's δ; as planned, without an account."
    )
    epsilon_total: Epsilon | None = Field(
        description="Of everything ever reserved, failed rounds, probes and other runs included. "
        "None without an account."
    )
    composition: Literal["plan", "filter"] | None = Field(
        description="How `spent` is composed: by PLD where all of it was one plan, fixed "
        "before its first release; else by the Rényi filter. None without differential privacy."
    )
    renyi_order: float | None = Field(
        description="The filter's order, fixed before the first release; None under 'plan'.", gt=1
    )
    epsilon_cap: float | None = Field(description="The site's own bound on epsilon_total.", gt=0)
    reserves: Count | None = Field(
        description="Requests that were paid for, of all runs. None without an account."
    )
    never_committed: Count | None = Field(
        description="Reserves whose answer never left: paid all the same. None without an account."
    )
    releases: Count | None = Field(
        description="Messages with content from records that left the site. None without an "
        "account."
    )
    ledger: SignedHead = Field(description="Where its ledger stood, signed by the site.")

    @classmethod
    def of_account(
        cls, account: "SiteAccount", *, name: str, declared_units: int, rounds_answered: int
    ) -> Self:
        """A site that gave its account."""
        return cls(
            name=name,
            declared_units=declared_units,
            rounds_answered=rounds_answered,
            account="disclosed",
            **dict(account),
        )

    @classmethod
    def without_account(
        cls,
        why: Literal["withheld", "missing"],
        *,
        name: str,
        declared_units: int,
        rounds_answered: int,
        ledger: SignedHead,
        planned: tuple[PrivacyEvent, ...],
        epsilon_planned: float | None,
    ) -> Self:
        """A site that gave none. `planned` is grouped, and empty without privacy."""
        return cls(
            name=name,
            declared_units=declared_units,
            rounds_answered=rounds_answered,
            account=why,
            atoms=(),
            spent=planned,
            epsilon_after_round=None,
            epsilon_run=epsilon_planned,
            epsilon_total=None,
            composition=None if epsilon_planned is None else "plan",
            renyi_order=None,
            epsilon_cap=None,
            reserves=None,
            never_committed=None,
            releases=None,
            ledger=ledger,
        )

    @property
    def is_disclosed(self) -> bool:
        """Whether the figures are the site's own."""
        return self.account == "disclosed"

    @property
    def epsilon_known(self) -> float | None:
        """The most that is known to be spent: the total, or else what this run may have cost."""
        return self.epsilon_total if self.is_disclosed else self.epsilon_run

    @property
    def epsilon_remaining(self) -> float | None:
        """What is left below the cap; None without one."""
        if self.epsilon_cap is None or self.epsilon_total is None:
            return None
        return max(0.0, self.epsilon_cap - self.epsilon_total)

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        counts = (self.reserves, self.never_committed, self.releases)
        if not self.is_disclosed:
            figures = (*counts, self.epsilon_total, self.epsilon_after_round, self.epsilon_cap)
            if self.atoms or any(figure is not None for figure in (*figures, self.renyi_order)):
                raise ValueError("there is a figure of the ledger of a site that gave no account")
        elif None in counts:
            raise ValueError("the account of a site lacks a count")
        if (self.never_committed or 0) > (self.reserves or 0):
            raise ValueError("never_committed is above reserves")
        run, total = self.epsilon_run, self.epsilon_total
        if run is not None and total is not None and run > total * (1 + ROUNDING):
            raise ValueError("epsilon_run is above epsilon_total, though it is a part of it")
        return self


class Cohorts(Part):
    """Who took part in the rounds."""

    registered: int = Field(ge=1, description="Sites of the federation.")
    asked_per_round: int = Field(ge=1)
    quorum: int = Field(ge=1, description="Answers that a round needs.")
    smallest_answered: Count = Field(description="Over all finished rounds.")
    worst_dropout: Share = Field(description="Largest share of a cohort without an answer.")
    threshold: int | None = Field(
        description="Sites whose noise shares must arrive: secure aggregation only."
    )
    collusion_bound: int | None = Field(
        description="Sites that may collude with the server: secure aggregation only."
    )


class Refusal(Part):
    """A site declined; the code is all that it says."""

    site: SiteName
    code: RefusalCode


class RoundReport(Part):
    """One round, as the server saw it."""

    number: int = Field(ge=1)
    asked: tuple[SiteName, ...]
    answered: tuple[SiteName, ...]
    refused: tuple[Refusal, ...]
    seconds: float = Field(ge=0)
    mean_update_norm: float = Field(
        ge=0, description="L2 norm of the mean update that the strategy received."
    )
    validation_loss: float | None = Field(
        description="The objective on public procedural images: no record is involved."
    )
    training_loss: float | None = Field(
        default=None, description="Mean over sites; private, so without DP only."
    )

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        heard = [*self.answered, *(refusal.site for refusal in self.refused)]
        if len(set(heard)) < len(heard):
            raise ValueError("a site answers or refuses, once")
        if not set(heard) <= set(self.asked):
            raise ValueError("a site that was not asked answered or refused")
        return self

    @property
    def silent(self) -> tuple[str, ...]:
        """Sites that were asked and sent nothing usable before the deadline."""
        heard = {*self.answered, *(refusal.site for refusal in self.refused)}
        return tuple(site for site in self.asked if site not in heard)
