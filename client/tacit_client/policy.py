"""What a site allows: decided by its operator and read locally, never from the server."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tacit_common.errors import RefusalCode, SiteRefusal
from tacit_common.ledger_chain import Cap, Charge
from tacit_common.privacy.events import NonPrivateRelease
from tacit_common.privacy.spend import Spend


class SitePolicy(BaseModel):
    """The site's own bounds on what all studies together may cost its data.

    What the cap guarantees: as long as it stands, everything that this site ever released
    of one unit, over all rounds, runs, studies and coordinators, each chosen with all
    earlier answers in view, is (`epsilon_cap`, `delta`)-DP for that unit (zero-out). The
    δ of a study is its own affair: the cap is held at the policy's δ. Its unit is not: a
    bound for one record says nothing of a person with many, and one for a person nothing
    that is as sharp of one record, so a site admits studies of its own unit alone.

    What it does not: nothing bounds a unit that an operator gives a new lineage and a new
    form, units that the site's tags cannot link, what other sites release of the same
    person, or releases without privacy, which `allow_non_private` permits. After one of
    those the touched data admits no private study any more, because no cap could be kept.

    A cap may be changed at any time. The one that counts is that of today.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    unit: Literal["record", "subject"] = Field(
        description="What the cap protects: a record, or a subject with all of its records."
    )
    epsilon_cap: float = Field(gt=0, description="Largest ε of everything ever released.")
    delta: float = Field(gt=0, lt=1, description="δ at which the cap is stated.")
    allow_non_private: bool = Field(description="Whether mode `none` may touch this data.")

    @property
    def cap(self) -> Cap:
        """What a charge that asks for this policy's consent has to name."""
        return Cap(epsilon=self.epsilon_cap, delta=self.delta)

    def check(self, spend: Spend, charge: Charge) -> None:
        """Whether `charge` may be added to what the ledger says is spent.

        The answer depends on the charge and the ledger alone, never on data. `Ledger.reserve`
        takes this method and asks it while nobody else can append.

        Raises:
            SiteRefusal: it would pass the cap of an atom that it touches, names another
                cap, or has no differential privacy at all.
        """
        if isinstance(charge.event, NonPrivateRelease):
            if not self.allow_non_private:
                raise SiteRefusal(
                    RefusalCode.POLICY,
                    why="the plan has no differential privacy and the site's policy asks for it",
                    fix="propose a study with privacy.mode = 'local'",
                )
            return
        if charge.unit != self.unit:
            raise SiteRefusal(
                RefusalCode.POLICY,
                why=f"the study protects a {charge.unit}, and the site's cap is for a {self.unit}",
                fix=f"propose a study with privacy.unit = '{self.unit}'",
            )
        if charge.cap != self.cap:
            raise SiteRefusal(
                RefusalCode.POLICY,
                why="the charge was made for another cap than the site's",
                fix="report this: it is a fault in the site's software",
            )
        for verdict in spend.verdicts(charge):
            if not verdict.admitted:
                raise SiteRefusal(
                    RefusalCode.BUDGET,
                    why=f"the request would pass the site's cap of ε = {self.epsilon_cap:g}: "
                    f"{verdict.why}",
                    fix="ask for fewer rounds, more noise or a smaller sampling rate",
                )
