"""From records to features."""

from tacit_common.encoders.contract import Encoder, PatchEncoder
from tacit_common.encoders.export import embed, load_encoder, read_encoder_plan, save_encoder
from tacit_common.encoders.factory import build_encoder, image_shape
from tacit_common.encoders.vision import VisionTransformer

__all__ = [
    "Encoder",
    "PatchEncoder",
    "VisionTransformer",
    "build_encoder",
    "embed",
    "image_shape",
    "load_encoder",
    "read_encoder_plan",
    "save_encoder",
]
