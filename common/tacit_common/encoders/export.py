"""A trained encoder on disk: `encoder.safetensors` and `config.json` in one folder.

from tacit_common.encoders import embed, load_encoder

encoder = load_encoder(Path("runs/my-study/encoder"))
features = embed(encoder, images)  # [N, D]
"""

import hashlib
import json
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as parse_weights
from safetensors.torch import save as serialise_weights
from torch import Tensor, nn

from tacit_common import __version__
from tacit_common.encoders.contract import Encoder
from tacit_common.encoders.factory import build_encoder
from tacit_common.errors import CheckpointError
from tacit_common.files import write_atomically
from tacit_common.plugins import PluginTable
from tacit_common.study import EncoderPlan

WEIGHTS_FILE = "encoder.safetensors"
CONFIG_FILE = "config.json"
FORMAT_VERSION: Literal[1] = 1


class _Config(BaseModel):
    """What `config.json` holds; another meaning of a field takes another format version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["tacit-encoder"] = "tacit-encoder"
    format_version: Literal[1] = FORMAT_VERSION
    tacit_version: str
    weights_sha256: str
    plan: EncoderPlan
    provenance: dict[str, str | int | float]


def save_encoder(
    directory: Path,
    encoder: Encoder | nn.Module,
    plan: EncoderPlan,
    *,
    provenance: dict[str, str | int | float],
) -> None:
    """Write `encoder` and what is needed to build it again; an older export is replaced.

    Guarantees: after a crash at any point, `load_encoder` either loads one whole export
    or raises. The bytes are a function of the arguments.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    state = _module(encoder).state_dict()
    weights = serialise_weights(
        {
            name: part.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, part in state.items()
        }
    )
    config = _Config(
        tacit_version=__version__,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        plan=plan,
        provenance=provenance,
    )
    text = json.dumps(config.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"
    try:
        # The config names the weights by their hash, so it comes last.
        write_atomically(directory / WEIGHTS_FILE, weights)
        write_atomically(directory / CONFIG_FILE, text.encode())
    except OSError as error:
        raise CheckpointError(
            f"cannot write the encoder to '{directory}'",
            why=error.strerror or type(error).__name__,
            fix="choose a folder that can be written and has space",
        ) from None


def load_encoder(directory: Path, plugins: PluginTable | None = None) -> Encoder:
    """The encoder that `save_encoder` wrote to `directory`, on the CPU, for inference.

    `plugins` says what a plug-in's name means here; built-in encoders need none.

    Raises:
        CheckpointError: files are missing, damaged, or of a version not known here.
        PluginError: the encoder is a plug-in that is not configured here.
    """
    config = _read_config(directory)
    weights = _read(directory / WEIGHTS_FILE)
    if hashlib.sha256(weights).hexdigest() != config.weights_sha256:
        raise _damaged(directory, "the weights do not have the hash that config.json gives")
    encoder = build_encoder(config.plan, plugins or PluginTable(), seed=0)
    module = _module(encoder)
    try:
        module.load_state_dict(parse_weights(weights))
    except (SafetensorError, RuntimeError):
        raise _damaged(directory, "the weights are not those of the encoder planned") from None
    module.requires_grad_(False).eval()
    return encoder


def read_encoder_plan(directory: Path) -> EncoderPlan:
    """What kind of encoder `directory` holds, without building it.

    Raises:
        CheckpointError: config.json is missing, damaged, or of a version not known here.
    """
    return _read_config(directory).plan


@torch.no_grad()
def embed(
    encoder: Encoder | nn.Module, records: Tensor, batch_size: int = 256
) -> NDArray[np.float32]:
    """Features [N, embed_dim] (float32) of `records` [N, ...], `batch_size` at a time."""
    first = next(_module(encoder).parameters(), None)
    device = records.device if first is None else first.device
    parts = [
        encoder(records[start : start + batch_size].to(device)).float().cpu().numpy()
        # No records are still one batch, which has the width of the features.
        for start in range(0, max(len(records), 1), batch_size)
    ]
    features: NDArray[np.float32] = np.concatenate(parts)
    return features


def _read_config(directory: Path) -> _Config:
    try:
        document = json.loads(_read(directory / CONFIG_FILE))
    except ValueError:
        raise _damaged(directory, "config.json is not JSON") from None
    if not isinstance(document, dict) or document.get("format") != "tacit-encoder":
        raise _damaged(directory, "config.json does not describe a Tacit encoder")
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"cannot load the encoder in '{directory}'",
            why=f"it has format version {version}, and Tacit {__version__} knows {FORMAT_VERSION}",
            fix="load it with the version of Tacit that config.json names",
        )
    try:
        return _Config.model_validate(document)
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, item["loc"])) for item in error.errors())
        raise _damaged(directory, f"config.json has wrong fields: {wrong}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"cannot read '{path}'",
            why=error.strerror or type(error).__name__,
            fix="give the folder that holds encoder.safetensors and config.json",
        ) from None


def _damaged(directory: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"the encoder in '{directory}' is damaged", why=why, fix="export or copy it again"
    )


def _module(encoder: Encoder | nn.Module) -> nn.Module:
    if not isinstance(encoder, nn.Module):
        raise TypeError("an encoder is an nn.Module; see tacit_common.encoders.contract")
    return encoder
