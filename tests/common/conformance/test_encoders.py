"""Sound encoders conform, and every clause for them catches a fault planted for it."""

import pytest
import torch
import torch.nn.functional as F
from tests.common.conformance.sound import BATCH, SoundEncoder, swapped, vit
from torch import Tensor, nn

from tacit_common.encoders import Encoder
from tacit_common.testing import ConformanceError, check_encoder


@pytest.mark.parametrize("encoder", [vit(), SoundEncoder()], ids=["vit", "convolutional"])
def test_sound_encoders_conform(encoder: Encoder) -> None:
    check_encoder(encoder, BATCH)


class _NotAModule:
    embed_dim = 4

    def __call__(self, batch: Tensor) -> Tensor:
        return batch


class _ZeroDim(SoundEncoder):
    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = 0


class _WrongDim(SoundEncoder):
    def mix(self, features: Tensor) -> Tensor:
        return features[:, :3]


class _Infinite(SoundEncoder):
    def mix(self, features: Tensor) -> Tensor:
        return features / 0


class _Dropout(SoundEncoder):
    def mix(self, features: Tensor) -> Tensor:
        return F.dropout(features, 0.5, training=self.training)


class _Centred(SoundEncoder):
    def mix(self, features: Tensor) -> Tensor:
        return features - features.mean(dim=0)


class _NaNLeak(SoundEncoder):
    def mix(self, features: Tensor) -> Tensor:
        return features + 0 * features.sum()  # equal values, until one record is NaN


class _CountsRows(SoundEncoder):
    def mix(self, features: Tensor) -> Tensor:
        return features / len(features)


class _KnowsItsPlace(SoundEncoder):
    def mix(self, features: Tensor) -> Tensor:
        return features * torch.tensor([1.0] + [2.0] * (len(features) - 2) + [1.0])[:, None]


class _Order(SoundEncoder):
    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = super().forward(images)
        return features * (2 if swapped(images[:, 0, 0, 0]) else 1)


class _HiddenGradient(SoundEncoder):
    def mix(self, features: Tensor) -> Tensor:
        mean = features.mean(dim=0)
        return features + torch.where(mean.isfinite(), mean - mean.detach(), 0)


class _Counter(SoundEncoder):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def mix(self, features: Tensor) -> Tensor:
        self.get_buffer("calls").add_(1)
        return features


class _SavedBuffer(SoundEncoder):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))


class _BatchNorm(SoundEncoder):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)


class _FreeParameter(SoundEncoder):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def mix(self, features: Tensor) -> Tensor:
        return features * self.scale


class _SharedLookup(SoundEncoder):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Embedding(5, 4)

    def mix(self, features: Tensor) -> Tensor:
        scale: Tensor = self.scale(torch.arange(5)).sum(dim=0)  # 5 rows, however many records
        return features * scale


@pytest.mark.parametrize(
    ("encoder", "clause"),
    [
        (_NotAModule(), "an encoder is an nn.Module"),
        (nn.Identity(), "an encoder has embed_dim"),
        (_ZeroDim(), "embed_dim is a positive whole number"),
        (_WrongDim(), "features have shape [B, embed_dim]"),
        (_Infinite(), "features are finite"),
        (_Dropout(), "the same inputs give the same result"),
        (_Centred(), "row i stays when record j is replaced"),
        (_NaNLeak(), "row i stays when record j is replaced"),
        (_CountsRows(), "row i stays when other records are removed"),
        (_KnowsItsPlace(), "row i stays when other records are removed"),
        (_Order(), "rows are permuted as the records are"),
        (_HiddenGradient(), "row i stays when record j is replaced"),
        (_Counter(), "parameters, buffers and attributes stay as they were"),
        (_SavedBuffer(), "no batch statistics, no saved buffers"),
        (_BatchNorm(), "no batch statistics, no saved buffers"),
        (
            _FreeParameter(),
            "every parameter belongs to a layer; look a free-standing one up in an nn.Embedding",
        ),
        (_SharedLookup(), "every module is called with B rows"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fault_planted_in_an_encoder_is_found(encoder: Encoder, clause: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_encoder(encoder, BATCH)
    assert caught.value.clause == clause


def test_too_small_an_example_is_not_checked() -> None:
    with pytest.raises(ValueError, match="at least 4 records"):
        check_encoder(SoundEncoder(), BATCH[:2])
