"""The vision transformer against slow references, and what the seed decides."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tacit_common.encoders import PatchEncoder, VisionTransformer, build_encoder
from tacit_common.encoders.vision import (
    TransformerBlock,
    patchify,
    sine_cosine_positions,
    unpatchify,
)
from tacit_common.errors import DataError, PluginError
from tacit_common.plugins import PluginTable
from tacit_common.study import PluginPlan, ViTPlan

PLAN = ViTPlan(kind="vit", image_size=8, channels=2, patch_size=2, width=12, depth=2, heads=3)


def encoder(plan: ViTPlan = PLAN, seed: int = 0) -> VisionTransformer:
    built = build_encoder(plan, PluginTable(), seed)
    assert isinstance(built, VisionTransformer)
    return built.double()


def images(rows: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 2, 8, 8, generator=generator, dtype=torch.float64)


@given(
    rows=st.integers(0, 3),
    channels=st.integers(1, 3),
    down=st.integers(1, 4),
    across=st.integers(1, 4),
    side=st.integers(1, 3),
)
def test_patchify_cuts_squares_in_reading_order_and_unpatchify_undoes_it(
    rows: int, channels: int, down: int, across: int, side: int
) -> None:
    batch = torch.rand(rows, channels, down * side, across * side)
    patches = patchify(batch, side)
    assert patches.shape == (rows, down * across, channels * side * side)
    for row in range(rows):
        for n in range(down * across):
            y, x = n // across * side, n % across * side
            square = batch[row, :, y : y + side, x : x + side]
            assert torch.equal(patches[row, n], square.flatten())
    assert torch.equal(unpatchify(patches, (channels, down * side, across * side), side), batch)


def test_the_patch_embedding_is_a_strided_convolution() -> None:
    model, batch = encoder(), images()
    kernel = model.patch_embedding.weight.view(12, 2, 2, 2)
    convolved = F.conv2d(batch, kernel, model.patch_embedding.bias, stride=2)
    embedded = model.patch_embedding(model.patchify(batch))
    torch.testing.assert_close(embedded, convolved.flatten(2).transpose(1, 2))


def test_a_block_is_pre_norm_attention_and_mlp() -> None:
    block = TransformerBlock(width=6, heads=2, mlp_ratio=2.0).double()
    tokens = torch.randn(2, 5, 6, dtype=torch.float64)
    expected = tokens.clone()
    for b in range(2):
        normed = block.attention_norm(tokens[b])
        query, key, value = block.qkv(normed).split(6, dim=1)
        heads = []
        for h in (slice(0, 3), slice(3, 6)):
            weights = torch.softmax(query[:, h] @ key[:, h].T / 3**0.5, dim=1)
            heads.append(weights @ value[:, h])
        expected[b] = tokens[b] + block.attention_out(torch.cat(heads, dim=1))
    expected = expected + block.mlp_out(F.gelu(block.mlp_in(block.mlp_norm(expected))))
    torch.testing.assert_close(block(tokens), expected)


def test_features_are_the_mean_of_the_tokens_of_all_patches() -> None:
    model, batch = encoder(), images()
    every = torch.arange(16).expand(3, -1)
    features = model(batch)
    assert features.shape == (3, 12)
    torch.testing.assert_close(model.encode_visible(batch, every).mean(dim=1), features)
    nothing = torch.zeros(3, 16, dtype=torch.bool)
    torch.testing.assert_close(model.encode_masked(batch, nothing).mean(dim=1), features)


def test_visible_tokens_follow_the_order_asked_for() -> None:
    model, batch = encoder(), images()
    visible = torch.tensor([[0, 5, 9], [3, 1, 2], [15, 0, 7]])
    tokens = model.encode_visible(batch, visible)
    turned = model.encode_visible(batch, visible.flip(1))
    torch.testing.assert_close(turned.flip(1), tokens)


def test_hidden_pixels_reach_no_token() -> None:
    model, batch = encoder(), images()
    visible = torch.tensor([[0, 5], [3, 1], [15, 0]])
    hidden = torch.ones(3, 16, dtype=torch.bool).scatter(1, visible, False)
    patches = model.patchify(batch)
    noisy = model.unpatchify(
        torch.where(hidden.unsqueeze(-1), torch.rand_like(patches) * 50, patches)
    )
    assert not torch.equal(model(noisy), model(batch))
    assert torch.equal(model.encode_visible(noisy, visible), model.encode_visible(batch, visible))
    assert torch.equal(model.encode_masked(noisy, hidden), model.encode_masked(batch, hidden))


def test_the_zero_mask_token_stands_for_any_learned_one() -> None:
    model, batch = encoder(), images()
    masked = torch.rand(3, 16) < 0.5
    token = torch.randn(12, dtype=torch.float64)
    embedded = model.patch_embedding(model.patchify(batch))
    learned = torch.where(masked.unsqueeze(-1), token, embedded) + model.position.weight
    expected = model.norm(model.blocks(learned))
    with torch.no_grad():
        model.position.weight.add_(token)
        model.patch_embedding.bias.sub_(token)
    torch.testing.assert_close(model.encode_masked(batch, masked), expected)


def test_every_parameter_is_in_a_layer_that_clips_exactly_and_gets_a_gradient() -> None:
    model = encoder()
    owners = {type(m) for m in model.modules() if list(m.parameters(recurse=False))}
    assert owners == {nn.Linear, nn.LayerNorm, nn.Embedding}
    assert not list(model.buffers())
    model(images()).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_it_is_a_patch_encoder_of_the_planned_size() -> None:
    model = encoder()
    assert isinstance(model, PatchEncoder)
    assert (model.embed_dim, model.num_patches, model.patch_dim) == (12, 16, 8)


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(DataError, match=r"\[1, 8, 8\] do not fit.*\[2, 8, 8\]"):
        encoder()(torch.rand(3, 1, 8, 8))


@pytest.mark.parametrize(("count", "width"), [(16, 12), (16, 10), (1, 9), (4, 8), (6, 8)])
def test_positions_start_apart_and_within_one(count: int, width: int) -> None:
    positions = sine_cosine_positions(count, width)
    assert positions.shape == (count, width)
    assert positions.abs().max() <= 1
    distances = torch.cdist(positions, positions) + torch.eye(count)
    assert distances.min() > 0.1


def test_positions_of_a_grid_hold_row_and_column() -> None:
    positions = sine_cosine_positions(9, 8).view(3, 3, 2, 4)  # [row, column, axis, features]
    assert torch.equal(positions[:, 0, 0], positions[:, 2, 0])  # the row's part, any column
    assert torch.equal(positions[0, :, 1], positions[2, :, 1])  # the column's part, any row


def test_weights_depend_on_the_seed_alone_and_leave_the_global_state() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = encoder(seed=5).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    two = encoder(seed=5).state_dict()
    other = encoder(seed=6).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["patch_embedding.weight"], other["patch_embedding.weight"])


class _Plain(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed_dim = width
        self.layer = nn.Linear(4, width)

    def forward(self, batch: Tensor) -> Tensor:
        out: Tensor = self.layer(batch)
        return out


class _NotAModule:
    embed_dim = 3

    def __call__(self, batch: Tensor) -> Tensor:
        return batch


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> PluginTable:
    module = types.ModuleType("plugins_for_test_vision")
    vars(module).update(Plain=_Plain, NotAModule=_NotAModule)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    names = {"plain": "Plain", "not_a_module": "NotAModule"}
    targets = {name: f"{module.__name__}:{attribute}" for name, attribute in names.items()}
    return PluginTable({**targets, "no_embed_dim": "torch.nn:Identity"})


def test_a_plug_in_encoder_is_built_from_its_options_and_the_seed(plugins: PluginTable) -> None:
    plan = PluginPlan(kind="plugin", name="plain", options={"width": 7})
    one, two = build_encoder(plan, plugins, 3), build_encoder(plan, plugins, 3)
    assert isinstance(one, _Plain)
    assert isinstance(two, _Plain)
    assert one.embed_dim == 7
    assert torch.equal(one.layer.weight, two.layer.weight)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("unknown", "is not configured here"),
        ("no_embed_dim", "lacks embed_dim"),
        ("not_a_module", "is not a torch module"),
    ],
)
def test_what_is_no_encoder_is_refused(plugins: PluginTable, name: str, complaint: str) -> None:
    with pytest.raises(PluginError, match=complaint):
        build_encoder(PluginPlan(kind="plugin", name=name), plugins, 0)
