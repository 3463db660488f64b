"""What a site allows: decided by its operator and read locally, never from the server."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from tacit_common.errors import RefusalCode, SiteRefusal
from tacit_common.privacy.accounting import PLANNING_INTERVAL, REPORT_INTERVAL, epsilon
from tacit_common.privacy.events import NonPrivateRelease, PrivacyEvent


class SitePolicy(BaseModel):
    """The site's own bounds on what all studies together may cost its data."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epsilon_cap: float = Field(gt=0, description="Largest ε of everything ever released.")
    delta: float = Field(gt=0, lt=1, description="δ at which the cap is stated.")
    allow_non_private: bool = Field(description="Whether mode `none` may touch this data.")

    def check(self, spent: Sequence[PrivacyEvent], proposed: PrivacyEvent) -> None:
        """Whether `proposed` may be added to what the ledger says is `spent`.

        The answer depends on the plan and the ledger alone, never on data.

        Raises:
            SiteRefusal: it would pass the cap, or has no differential privacy at all.
        """
        if isinstance(proposed, NonPrivateRelease):
            if not self.allow_non_private:
                raise SiteRefusal(
                    RefusalCode.POLICY,
                    why="the plan has no differential privacy and the site's policy asks for it",
                    fix="propose a study with privacy.mode = 'local'",
                )
            return
        events = [*spent, proposed]
        # A coarse grid overstates ε a little and is ten times faster: ask the fine one
        # only where the difference could decide.
        if epsilon(events, self.delta, interval=PLANNING_INTERVAL) <= self.epsilon_cap:
            return
        if epsilon(events, self.delta, interval=REPORT_INTERVAL) > self.epsilon_cap:
            raise SiteRefusal(
                RefusalCode.BUDGET,
                why=f"the request would pass the site's cap of ε = {self.epsilon_cap:g}",
                fix="ask for fewer rounds, more noise or a smaller sampling rate",
            )
