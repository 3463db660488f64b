"""The studies that are measured: ViT-MAE in three sizes, with and without privacy."""

from typing import Literal

from tacit_common.study import StudyFile

Mode = Literal["local", "none"]

IMAGE_SIZE, CHANNELS = 32, 3

_SHAPES = {  # name: width, depth, heads; with the decoder about 0.23, 1.06 and 3.2 M parameters
    "0.2M": (64, 4, 4),
    "1M": (128, 5, 4),
    "3M": (192, 7, 6),
    "25M": (512, 8, 8),  # 100 MB as float32
}
SIZES = ("0.2M", "1M", "3M")


def vit_study(
    size: str, mode: Mode, *, sampling_rate: float, rounds: int = 1, sites: int = 1
) -> StudyFile:
    """ViT-MAE on 32 x 32 x 3 images: 64 patches, 16 of them visible. No warm start, no probes."""
    width, depth, heads = _SHAPES[size]
    privacy: dict[str, object] = {"mode": mode, "sampling_rate": sampling_rate}
    if mode == "local":
        privacy |= {"unit": "record", "epsilon": 8.0, "delta": 1e-5, "l2_clip_norm": 1.0}
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
            "privacy": privacy,
            "federation": {"rounds": rounds, "local_steps": 4, "client_lr": 0.01},
            "simulation": {
                "dataset": "strokes",
                "sites": sites,
                "declared_units": 64,
                "device": "cpu",
            },
        }
    )
