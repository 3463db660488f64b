"""Planted faults of a step: how it is put together from sound parts."""

from tacit_client.gradients import UnitGradients
from tacit_client.pretrain import PrivateStepGradient
from tacit_client.units import Units
from tacit_common.data import DataSource
from tacit_common.messages import RoundPlan
from tacit_common.objectives.contract import PretrainModel
from tacit_common.privacy.mechanism import PrivacyMechanism
from tacit_common.privacy.noise import RandomSource
from tacit_common.study import LocalPrivacyPlan


class DividesByThePrivateCount(PrivateStepGradient):
    """The expected batch follows from how many records there are, and tells their number."""

    def __init__(
        self,
        gradients: UnitGradients,
        model: PretrainModel,
        source: DataSource,
        units: Units,
        plan: RoundPlan,
        privacy: LocalPrivacyPlan,
        mechanism: PrivacyMechanism,
        random: RandomSource,
        *,
        declared_units: int,
        physical_batch: int,
    ) -> None:
        super().__init__(
            gradients,
            model,
            source,
            units,
            plan,
            privacy,
            mechanism,
            random,
            declared_units=len(source),
            physical_batch=physical_batch,
        )
