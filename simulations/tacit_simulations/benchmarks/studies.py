"""The studies that are measured: ViT-MAE in several sizes, with and without privacy."""

from pathlib import Path
from typing import Literal

import numpy as np

from tacit_common.study import StudyFile

Mode = Literal["local", "none"]

IMAGE_SIZE, CHANNELS = 32, 3

_SHAPES = {  # name: width, depth, heads; with the decoder about 0.23, 1.06 and 3.2 M parameters
    "0.2M": (64, 4, 4),
    "1M": (128, 5, 4),
    "3M": (192, 7, 6),
    "0.1M": (64, 2, 4),
    "10M": (320, 8, 8),
    "25M": (512, 8, 8),  # 100 MB as float32
    "100M": (768, 14, 12),
}
SIZES = ("0.2M", "1M", "3M")

_SMALL_IMAGE, _HELD_OUT = 8, 0.2  # pixels; the share that a simulation takes of a file


def vit_study(
    size: str, mode: Mode, *, sampling_rate: float, rounds: int = 1, sites: int = 1
) -> StudyFile:
    """ViT-MAE on 32 x 32 x 3 images: 64 patches, 16 of them visible. No warm start, no probes."""
    width, depth, heads = _SHAPES[size]
    return StudyFile.model_validate(
        {
            "name": "benchmark",
            "seed": 0,
            "encoder": {
                "kind": "vit",
                "image_size": IMAGE_SIZE,
                "channels": CHANNELS,
                "patch_size": 4,
                "width": width,
                "depth": depth,
                "heads": heads,
            },
            "objective": {"kind": "masked", "decoder_width": 48, "decoder_depth": 1},
            "privacy": _privacy(mode, sampling_rate),
            "federation": {"rounds": rounds, "local_steps": 4, "client_lr": 0.01},
            "simulation": {
                "dataset": "strokes",
                "sites": sites,
                "declared_units": 64,
                "device": "cpu",
            },
        }
    )


def small_image_study(
    size: str,
    mode: Mode,
    folder: Path,
    *,
    sites: int,
    records: int,
    batch: int,
    rounds: int,
    cohort: int | None = None,
    workers: int = 1,
) -> StudyFile:
    """ViT-MAE on 8 x 8 images of one channel, `records` a site from a file made in `folder`.

    `batch` is the expected batch of a step, and how many gradients are formed at once. The
    model is as in `vit_study` but for its four patches.
    """
    width, depth, heads = _SHAPES[size]
    path = folder / "images.npy"
    count = -(-sites * records * 100 // round(100 * (1 - _HELD_OUT)))  # rounded up
    images = np.random.default_rng(0).integers(
        0, 256, (count, 1, _SMALL_IMAGE, _SMALL_IMAGE), dtype=np.uint8
    )
    np.save(path, images)
    return StudyFile.model_validate(
        {
            "name": "benchmark",
            "seed": 0,
            "encoder": {
                "kind": "vit",
                "image_size": _SMALL_IMAGE,
                "channels": 1,
                "patch_size": 4,
                "width": width,
                "depth": depth,
                "heads": heads,
            },
            "objective": {"kind": "masked", "decoder_width": 32, "decoder_depth": 1},
            "privacy": _privacy(mode, batch / records),
            "federation": {
                "rounds": rounds,
                "local_steps": 1,
                "client_lr": 0.01,
                "cohort_size": cohort,
            },
            "simulation": {
                "dataset": str(path),
                "sites": sites,
                "declared_units": records,
                "physical_batch": batch,
                "device": "cpu",
                "workers": workers,
            },
        }
    )


def _privacy(mode: Mode, sampling_rate: float) -> dict[str, object]:
    privacy: dict[str, object] = {"mode": mode, "sampling_rate": sampling_rate}
    if mode == "local":
        privacy |= {"unit": "record", "epsilon": 8.0, "delta": 1e-5, "l2_clip_norm": 1.0}
    return privacy
