"""Gradient canaries: records whose gradient is a single spike, in a coordinate of their own.

Nasr, Hayes, Steinke et al. 2023 (arXiv 2302.07956), section 4, and Steinke, Nasr and
Jagielski 2023 (arXiv 2305.08846), section 5: "Dirac canaries". No record is easier to
find in a noised sum than one whose whole clipped gradient lies in one known coordinate,
where nobody else's does.

A canary goes where every record goes: read from the data source, drawn by the sampler,
turned into views, through the model, its hooks, clipping, summing and noise. Only the
objective knows it: it gives a canary a loss of its own, and every other record the loss
that the study asks for.
"""

from collections.abc import Hashable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tacit_common.data import DataSource
from tacit_common.encoders.contract import Encoder
from tacit_common.errors import PrivacyConfigError
from tacit_common.objectives.contract import Coupling, Objective, PretrainModel, Views

_MARK = 2.0**20
"""Pixels lie in [0, 1], so a first pixel of −2²⁰ − k marks canary k and nothing else."""

MOST_CANARIES = 1 << 16


def canary_record(number: int, shape: tuple[int, ...]) -> Tensor:
    """The record of canary `number` (from 1), float32 of `shape`."""
    record = torch.zeros(shape)
    record.view(-1)[0] = -_MARK - number
    return record


def canary_numbers(batch: Tensor) -> Tensor:
    """Which canary each row of `batch` [B, ...] is, [B] (long); 0 is a real record."""
    first = batch.flatten(1)[:, 0]
    marked = (first < -_MARK) & (first >= -_MARK - MOST_CANARIES)  # NaN is neither
    return torch.where(marked, -_MARK - first, torch.zeros_like(first)).long()


class WithCanaries:
    """A site's records, and after them one record for every canary that joined.

    Each canary is a unit of its own. Implements `DataSource`.
    """

    def __init__(
        self, source: DataSource, joined: NDArray[np.bool_], shape: tuple[int, ...]
    ) -> None:
        self._source = source
        self._numbers = (np.flatnonzero(joined) + 1).tolist()
        self._shape = shape

    def __len__(self) -> int:
        """Number of real records and canaries."""
        return len(self._source) + len(self._numbers)

    def __getitem__(self, index: int) -> Tensor:
        """Record `index`, real ones first."""
        if index < len(self._source):
            return self._source[index]
        return canary_record(self._numbers[index - len(self._source)], self._shape)

    def unit_of(self, index: int) -> Hashable:
        """The unit of a real record, or the canary."""
        if index < len(self._source):
            return self._source.unit_of(index)
        return "canary", self._numbers[index - len(self._source)]


class CanaryHead(nn.Module):
    """The study's own head, and one parameter for every canary."""

    def __init__(self, head: nn.Module, canaries: int) -> None:
        super().__init__()
        self.head = head
        self.spikes = nn.Embedding(canaries + 1, 1)  # row 0 is nobody's: real records read it
        nn.init.zeros_(self.spikes.weight)


class CanaryObjective:
    """The study's objective for real records; for canary k, `gradient_norm` times parameter k.

    So the gradient of canary k is `gradient_norm` in its own coordinate and zero elsewhere,
    for all parameters that a server may send. Implements `Objective`.

    Raises:
        PrivacyConfigError: the objective bounds similarities and not gradients, so that a
            canary's loss has no place in it; or there are too many canaries.
    """

    def __init__(self, objective: Objective, *, canaries: int, gradient_norm: float) -> None:
        if objective.coupling is Coupling.LOGITS:
            raise PrivacyConfigError(
                f"objective '{type(objective).__name__}' cannot be audited with canaries",
                why="Logit-DP bounds the gradients of similarities between records, and a "
                "gradient canary is a record alone",
                fix="audit the site's gradient path with objective.kind = 'masked'; the bound of "
                "Logit-DP has an attack of its own among the tests",
            )
        if not 1 <= canaries <= MOST_CANARIES:
            raise PrivacyConfigError(
                f"{canaries} canaries are too few or too many",
                why=f"an audit takes 1 to {MOST_CANARIES} of them",
                fix="give a number of about 1000",
            )
        self.coupling: Coupling = objective.coupling
        self._objective = objective
        self._canaries = canaries
        self._gradient_norm = gradient_norm

    def build_head(self, encoder: Encoder) -> nn.Module:
        """The study's head, with canaries beside it."""
        return CanaryHead(self._objective.build_head(encoder), self._canaries)

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        """The study's views, in which a canary is an empty record, and who is a canary [B]."""
        numbers = canary_numbers(batch)
        real = batch.masked_fill((numbers > 0).view(-1, *[1] * (batch.dim() - 1)), 0.0)
        return *self._objective.views(real, generator), numbers

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        """Loss of every record or canary, [B]."""
        *of_record, numbers = views
        if not isinstance(model.head, CanaryHead):
            raise TypeError("a canary objective builds its own head")
        record = self._objective.loss(
            PretrainModel(model.encoder, model.head.head), tuple(of_record)
        )
        spike = self._gradient_norm * model.head.spikes(numbers).squeeze(-1)
        return torch.where(numbers > 0, spike, record)
