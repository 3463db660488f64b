"""Public procedural images of a study's size: for the warm start, the loss and the probes."""

import torch
from torch import Tensor

from tacit_common.encoders import image_shape
from tacit_common.errors import StudyError
from tacit_common.procedural import strokes
from tacit_common.study import Study


def public_images(study: Study, count: int, generator: torch.Generator) -> Tensor:
    """`count` stroke images [count, C, H, W] that the study's encoder takes.

    Raises:
        StudyError: the encoder is a plug-in that does not say the size of its images.
    """
    shape = image_shape(study.encoder)
    if shape is None:
        raise StudyError(
            "the server does not know the size of the encoder's images",
            why="public images for the warm start, the loss and the probes are of that size",
            fix="give the plug-in the options image_size and channels under [encoder.options]",
        )
    channels, size, _ = shape
    return strokes(count, image_size=size, channels=channels, generator=generator)
