"""The plain gradient, and the one vector that stands for a model.

Shared by everything that trains without privacy (warm start, mode `none`) and by the
private path, which replaces the gradient alone.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor, nn

from tacit_common.errors import WireError
from tacit_common.objectives.contract import Objective, PretrainModel, Views
from tacit_common.strategy import ParameterVector


def trained_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters that are trained and federated, in the order of the flat vector."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def trained_size(model: nn.Module) -> int:
    """Number of trained parameters, P."""
    return sum(p.numel() for _, p in trained_parameters(model))


def flatten_parameters(model: nn.Module) -> ParameterVector:
    """A copy of all trained parameters as one float32 vector [P]."""
    parts = [p.detach().reshape(-1) for _, p in trained_parameters(model)]
    flat: ParameterVector = torch.cat(parts).to("cpu", torch.float32).numpy()
    return flat


def change_since(model: nn.Module, start: ParameterVector) -> ParameterVector:
    """All trained parameters less `start` [P], float32 [P]: the update of local training."""
    change = np.empty_like(start, dtype=np.float32)
    offset = 0
    for _, parameter in trained_parameters(model):
        part = slice(offset, offset + parameter.numel())
        now = parameter.detach().reshape(-1).to("cpu", torch.float32).numpy()
        np.subtract(now, start[part], out=change[part])
        offset = part.stop
    return change


def load_parameters(model: nn.Module, flat: ParameterVector) -> None:
    """Write a flat vector [P] into the model.

    Raises:
        WireError: the vector has another length than the model's parameters.
    """
    parameters = trained_parameters(model)
    expected = sum(parameter.numel() for _, parameter in parameters)
    if flat.shape != (expected,):
        raise WireError(
            "a parameter vector does not fit the model",
            why=f"it has shape {flat.shape}, the study's model has {expected} parameters",
            fix="both sides must run the same Tacit version on the same study",
        )
    offset = 0
    for _, parameter in parameters:
        part = flat[offset : offset + parameter.numel()].reshape(parameter.shape)
        offset += parameter.numel()
        inside = parameter.detach()  # shares the parameter's memory, and has no gradient
        if inside.device.type == "cpu" and inside.dtype == torch.float32:
            inside.numpy()[...] = part  # a message's vector is read-only, which torch warns of
        else:
            inside.copy_(torch.from_numpy(np.array(part, dtype=np.float32)))


def seeded_generator(*parts: int | str) -> torch.Generator:
    """A CPU generator that depends on `parts` alone, e.g. (seed, "views", site, round).

    For training only: privacy noise and sampling never come from here.
    """
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def views_for(
    model: PretrainModel, objective: Objective, batch: Tensor, generator: torch.Generator
) -> Views:
    """Views of `batch` [B, ...] on the model's device.

    They are drawn where the generator is, on the CPU, so that a seed means the same on
    every device, and then moved.
    """
    device = next(model.parameters()).device
    return tuple(view.to(device) for view in objective.views(batch, generator))


def mean_gradient(
    model: PretrainModel,
    objective: Objective,
    batch: Tensor,
    generator: torch.Generator,
    *,
    augmentations: int = 1,
) -> float:
    """Fill `.grad` with the gradient of the mean loss of `batch` [B, ...], without privacy.

    Returns:
        The mean loss.
    """
    model.zero_grad(set_to_none=True)
    total = 0.0
    for _ in range(augmentations):
        loss = objective.loss(model, views_for(model, objective, batch, generator)).mean()
        loss = loss / augmentations
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total
