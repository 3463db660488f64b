"""An exported encoder loads as it was saved, or not at all."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tacit_common.encoders import (
    build_encoder,
    embed,
    export,
    load_encoder,
    read_encoder_plan,
    save_encoder,
)
from tacit_common.errors import CheckpointError, PluginError
from tacit_common.files import write_atomically
from tacit_common.plugins import PluginTable
from tacit_common.study import PluginPlan, ViTPlan

PLAN = ViTPlan(kind="vit", image_size=8, channels=1, patch_size=4, width=12, depth=1, heads=2)
RECORDS = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def saved(directory: Path, seed: int = 0) -> Path:
    encoder = build_encoder(PLAN, PluginTable(), seed)
    save_encoder(directory, encoder, PLAN, provenance={"study": "abc", "round": 3, "epsilon": 1.5})
    return directory


def edit_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    document = json.loads(path.read_text())
    document.update(changes)
    path.write_text(json.dumps(document))


def test_an_encoder_loads_as_it_was_saved(tmp_path: Path) -> None:
    encoder = build_encoder(PLAN, PluginTable(), 7)
    save_encoder(tmp_path / "a" / "b", encoder, PLAN, provenance={})
    loaded = load_encoder(tmp_path / "a" / "b")
    assert torch.equal(loaded(RECORDS), encoder(RECORDS))
    assert isinstance(loaded, nn.Module)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_the_config_says_where_the_encoder_came_from(tmp_path: Path) -> None:
    config = json.loads((saved(tmp_path) / "config.json").read_text())
    assert config["provenance"] == {"study": "abc", "round": 3, "epsilon": 1.5}
    assert config["plan"]["width"] == 12
    assert read_encoder_plan(tmp_path) == PLAN


def test_the_bytes_are_a_function_of_the_arguments(tmp_path: Path) -> None:
    for name in ("one", "two"):
        saved(tmp_path / name)
    for file in ("encoder.safetensors", "config.json"):
        one, two = (tmp_path / name / file for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_a_second_export_replaces_the_first_and_leaves_no_litter(tmp_path: Path) -> None:
    saved(tmp_path, seed=0)
    saved(tmp_path, seed=1)
    expected = build_encoder(PLAN, PluginTable(), 1)
    assert torch.equal(load_encoder(tmp_path)(RECORDS), expected(RECORDS))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "encoder.safetensors"]


def test_a_crash_between_the_files_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, seed=0)

    def crash_at_the_config(path: Path, *parts: bytes) -> None:
        if path.name == "config.json":
            raise KeyboardInterrupt
        write_atomically(path, *parts)

    monkeypatch.setattr(export, "write_atomically", crash_at_the_config)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, seed=1)
    with pytest.raises(CheckpointError, match="hash"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("file", ["encoder.safetensors", "config.json"])
def test_a_missing_file_is_named(tmp_path: Path, file: str) -> None:
    (saved(tmp_path) / file).unlink()
    with pytest.raises(CheckpointError, match=file):
        load_encoder(tmp_path)


@pytest.mark.parametrize("position", [0, 9, 200, -1])
def test_one_changed_byte_of_the_weights_is_refused(tmp_path: Path, position: int) -> None:
    path = saved(tmp_path) / "encoder.safetensors"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="hash"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("file", ["encoder.safetensors", "config.json"])
@pytest.mark.parametrize("kept", [0, 40])
def test_a_truncated_file_is_refused(tmp_path: Path, file: str, kept: int) -> None:
    path = saved(tmp_path) / file
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_encoder(tmp_path)


def test_weights_of_another_encoder_are_refused_even_with_their_hash(tmp_path: Path) -> None:
    saved(tmp_path)
    edit_config(tmp_path, plan={**PLAN.model_dump(), "depth": 2})
    with pytest.raises(CheckpointError, match="not those of the encoder planned"):
        load_encoder(tmp_path)


def test_weights_that_are_no_safetensors_are_refused_even_with_their_hash(tmp_path: Path) -> None:
    import hashlib

    saved(tmp_path)
    (tmp_path / "encoder.safetensors").write_bytes(b"nothing")
    edit_config(tmp_path, weights_sha256=hashlib.sha256(b"nothing").hexdigest())
    with pytest.raises(CheckpointError, match="not those of the encoder planned"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"format_version": 2}, "format version 2"),
        ({"format": "other"}, "does not describe a Tacit encoder"),
        ({"plan": {"kind": "vit"}}, "wrong fields: plan"),
        ({"extra": 1}, "wrong fields: extra"),
        ({"weights_sha256": None}, "wrong fields: weights_sha256"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(
    tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    saved(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=complaint):
        load_encoder(tmp_path)


def test_a_config_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (saved(tmp_path) / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="does not describe a Tacit encoder"):
        load_encoder(tmp_path)


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot write the encoder"):
        saved(tmp_path / "file" / "encoder")


class _Linear(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed_dim = width
        self.layer = nn.Linear(64, width)
        self.tied = self.layer

    def forward(self, batch: Tensor) -> Tensor:
        out: Tensor = self.tied(batch.flatten(1))
        return out


def test_a_plug_in_encoder_loads_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("plugins_for_test_export")
    vars(module).update(Linear=_Linear)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    plugins = PluginTable({"mine": "plugins_for_test_export:Linear"})
    plan = PluginPlan(kind="plugin", name="mine", options={"width": 5})
    encoder = build_encoder(plan, plugins, 0)
    save_encoder(tmp_path, encoder, plan, provenance={})
    assert torch.equal(load_encoder(tmp_path, plugins)(RECORDS), encoder(RECORDS))
    with pytest.raises(PluginError, match="is not configured here"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("batch_size", [1, 3, 10, 256])
def test_embedding_is_the_same_in_any_batches(batch_size: int) -> None:
    encoder = build_encoder(PLAN, PluginTable(), 0)
    features = embed(encoder, RECORDS, batch_size)
    assert features.shape == (10, 12)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, encoder(RECORDS).detach().numpy(), atol=1e-5)


def test_no_records_have_no_features_of_the_right_width() -> None:
    assert embed(build_encoder(PLAN, PluginTable(), 0), RECORDS[:0]).shape == (0, 12)
