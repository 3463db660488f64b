"""From an encoder's plan to an encoder whose weights depend on the plan and a seed alone."""

import torch
from torch import nn

from tacit_common.encoders.contract import Encoder
from tacit_common.encoders.vision import VisionTransformer
from tacit_common.errors import PluginError
from tacit_common.plugins import PluginTable, require
from tacit_common.study import EncoderPlan, PluginPlan, ViTPlan


def build_encoder(plan: EncoderPlan, plugins: PluginTable, seed: int) -> Encoder:
    """A new encoder on the CPU.

    Guarantees: the weights are a function of `plan` and `seed`; torch's global random
    state is as it was.

    Raises:
        PluginError: the plug-in is not configured here, or is no `Encoder` module.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if not isinstance(plan, PluginPlan):
            return VisionTransformer(plan)
        candidate = plugins.create(plan, "encoder")
    encoder = require(candidate, Encoder, plan.name)
    if not isinstance(encoder, nn.Module):
        raise PluginError(
            f"encoder plug-in '{plan.name}' is not a torch module",
            why=f"its factory returned a {type(encoder).__name__}",
            fix="return an nn.Module with an embed_dim",
        )
    return encoder


def image_shape(plan: EncoderPlan) -> tuple[int, int, int] | None:
    """(C, H, W) of the encoder's images, if the plan says so.

    A plug-in says so by its options `image_size` and `channels`.
    """
    if isinstance(plan, ViTPlan):
        return plan.channels, plan.image_size, plan.image_size
    size, channels = plan.options.get("image_size"), plan.options.get("channels")
    if isinstance(size, int) and isinstance(channels, int):
        return channels, size, size
    return None
