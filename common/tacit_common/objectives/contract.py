"""The objective plug-in point: a loss per unit, and what it couples (docs/privacy.md 3)."""

from enum import StrEnum
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from tacit_common.encoders.contract import Encoder

Views = tuple[Tensor, ...]
"""What an objective sees of a batch: tensors whose leading dimension is B, one row a unit."""


class Coupling(StrEnum):
    """Which records the loss of one record depends on."""

    NONE = "none"  # its own record, its own randomness, the parameters, public constants
    BATCH = "batch"  # other records of the batch too: no per-example gradient exists
    LOGITS = "logits"  # other records, through a matrix of similarities alone: see logit_dp


class PretrainModel(nn.Module):
    """What is trained and federated: an encoder and the objective's head on top of it."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head


@runtime_checkable
class Objective(Protocol):
    """A self-supervised loss.

    With `coupling == Coupling.NONE`, `loss` returns [B] where row i depends on row
    i of every view, the parameters and public constants alone, and every module of
    the model is called with B rows (as often as needed): that is what makes the
    gradient of row i a per-example gradient.
    """

    coupling: Coupling

    def build_head(self, encoder: Encoder) -> nn.Module:
        """The decoder, projector or predictor that this objective trains on `encoder`."""
        ...

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        """Random views of `batch` [B, ...]; all randomness comes from `generator`."""
        ...

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        """Loss of every unit, [B]."""
        ...
