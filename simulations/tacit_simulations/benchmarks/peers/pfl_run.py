"""The program of one pfl process, as pfl's documentation writes it."""

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.privacy import CentrallyAppliedPrivacyMechanism, GaussianMechanism
from torch import Tensor

from tacit_simulations.benchmarks.peers.clock import RoundTimes
from tacit_simulations.benchmarks.peers.task import Autoencoder, read_dealt, started_model, to_flat


class PflAutoencoder(Autoencoder):
    """The model with the two methods that pfl asks for."""

    def loss(self, images: Tensor) -> Tensor:
        """Mean loss of a batch."""
        losses: Tensor = self(images)
        return losses.mean()

    @torch.no_grad()
    def metrics(self, images: Tensor) -> dict[str, Weighted]:
        """What pfl evaluates, in the first round alone."""
        return {"loss": Weighted(self(images).sum().item(), len(images))}


class Watch(TrainingProcessCallback):  # type: ignore[misc]  # pfl's types are not seen here
    """Notes when rounds end."""

    def __init__(self, clock: RoundTimes) -> None:
        self._clock = clock

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        """pfl's interface."""
        del model
        self._clock.begin()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """pfl's interface."""
        del aggregate_metrics, model, central_iteration
        self._clock.end_round()
        return False, Metrics()


def run(folder: str, name: str, clock: RoundTimes) -> None:
    """Train all sites in every round, and keep the parameters at the end."""
    torch.set_num_threads(1)
    dealt = read_dealt(folder)
    work = dealt.work
    module = PflAutoencoder(work.hidden)
    module.load_state_dict(started_model(dealt).state_dict())
    model = PyTorchModel(
        module,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
    )
    sites = [PyTorchTensorDataset((dealt.site(index),)) for index in range(work.sites)]
    data = FederatedDataset(
        sites.__getitem__, get_user_sampler("minimize_reuse", range(work.sites))
    )
    postprocessors = []
    if dealt.noise_multiplier is not None:
        mechanism = GaussianMechanism(work.l2_clip_norm, dealt.noise_multiplier)
        postprocessors.append(CentrallyAppliedPrivacyMechanism(mechanism))
    whole = work.batch == work.records
    FederatedAveraging().run(
        backend=SimulatedBackend(data, data, postprocessors=postprocessors),
        model=model,
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=1 + work.rounds,
            evaluation_frequency=1 + work.rounds,
            train_cohort_size=work.sites,
            val_cohort_size=None,
        ),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=work.epochs,
            local_learning_rate=work.learning_rate,
            local_batch_size=None if whole else work.batch,
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[Watch(clock)],
    )
    dealt.finish(name, to_flat(module).numpy())
