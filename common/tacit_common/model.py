"""The model that server and sites build alike from one study."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from tacit_common.encoders import build_encoder, image_shape
from tacit_common.errors import PluginError
from tacit_common.objectives import Objective, PretrainModel, build_objective
from tacit_common.objectives.masked import MaskedModelling
from tacit_common.plugins import PluginTable
from tacit_common.study import (
    BankContrastPlan,
    MaskedPlan,
    PluginPlan,
    Study,
    ViewsPlan,
    ViTPlan,
)
from tacit_common.training import seeded_generator


def build_model(study: Study, plugins: PluginTable) -> tuple[PretrainModel, Objective]:
    """A new model, encoder and head, on the CPU, and its objective.

    Guarantees: the weights are a function of the study's plans and seed; torch's global
    random state is as it was.

    Raises:
        StudyError: the objective does not fit the encoder or the views.
        PluginError: a plug-in cannot be used, or keeps state that no gradient clipping covers.
    """
    encoder = build_encoder(study.encoder, plugins, study.seed)
    objective = build_objective(study, plugins)
    with torch.random.fork_rng(devices=[]):
        # A stream of its own, so that the head does not repeat the encoder's draws.
        head_seed = seeded_generator(study.seed, "head").initial_seed()
        torch.default_generator.manual_seed(head_seed)
        head = objective.build_head(encoder)
    if not isinstance(encoder, nn.Module):
        raise TypeError("build_encoder returns modules")
    model = PretrainModel(encoder, head)
    refuse_shared_state(model)
    return model, objective


def memory_of(study: Study) -> int:
    """Bytes of a study's parameters and public bank, known without allocating them.

    A plug-in's own are not counted: they are the code that a site installed. Nor is what
    training adds, which grows with a site's own `physical_batch`.
    """
    plan, objective = study.encoder, study.objective
    if isinstance(plan, PluginPlan):
        return 0
    numbers = _parameters(plan, objective if isinstance(objective, MaskedPlan) else None)
    if isinstance(objective, BankContrastPlan):
        numbers += objective.bank_size * plan.channels * plan.image_size**2
    return numbers * torch.float32.itemsize


@lru_cache(maxsize=16)
def _parameters(plan: ViTPlan, decoded: MaskedPlan | None) -> int:
    """Numbers in an encoder and, of masked modelling, its decoder; nothing is allocated."""
    with torch.device("meta"), _NothingDrawn():
        encoder = build_encoder(plan, PluginTable(), seed=0)
        modules: list[object] = [encoder]
        if decoded is not None:
            masked = MaskedModelling(decoded, ViewsPlan(), image_shape=image_shape(plan))
            modules.append(masked.build_head(encoder))
    return sum(
        parameter.numel()
        for module in modules
        if isinstance(module, nn.Module)
        for parameter in module.parameters()
    )


class _NothingDrawn(TorchFunctionMode):
    """Skips `nn.init.normal_`: it does nothing on meta tensors but import torch's compiler."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        return given["tensor"] if func is nn.init.normal_ else func(*args, **given)


def refuse_shared_state(model: nn.Module) -> None:
    """Refuse a model through which one record could reach another, or the server, unclipped.

    Batch statistics do it within a step, and a saved buffer (running statistics, a
    queue, a moving average) does it from step to step. A constant is fine when it is
    registered with `persistent=False`.

    Raises:
        PluginError: a module has batch statistics or a saved buffer.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            raise PluginError(
                f"module '{name}' is a {type(module).__name__}",
                why="batch statistics mix the records of a batch, so no record's gradient "
                "can be clipped",
                fix="use nn.GroupNorm or nn.LayerNorm",
            )
    saved = sorted(model.state_dict().keys() - dict(model.named_parameters()).keys())
    if saved:
        raise PluginError(
            f"the model saves state beside its parameters: {', '.join(saved)}",
            why="a buffer changes outside the clipped gradient, and is not federated",
            fix="register a constant with persistent=False, and make anything else a function "
            "of the parameters",
        )
