"""What an encoder learned, as pictures of held-out images; a site's records are never shown."""

import numpy as np
import torch
from numpy.typing import NDArray

from tacit_client.data import LabeledArraySource
from tacit_common.objectives import MaskedModelling, Objective, PretrainModel
from tacit_common.report import Neighbour, NeighbourQuery, Pictures, Reconstruction, png_data_uri
from tacit_common.training import seeded_generator

_RECONSTRUCTIONS, _QUERIES, _NEIGHBOURS = 8, 6, 6


def gallery(
    model: PretrainModel,
    objective: Objective,
    held_out: LabeledArraySource,
    features: NDArray[np.float64],
    *,
    source: str,
    seed: int,
) -> Pictures:
    """Nearest neighbours among the held-out images, and reconstructions of a few of them.

    `features` [M, D] are those of `held_out`, in order.
    """
    chosen = _one_of_each_class(held_out, seed)
    return Pictures(
        source=source,
        reconstructions=_reconstructions(
            model, objective, held_out.images[chosen[:_RECONSTRUCTIONS]], seed
        ),
        neighbour_queries=tuple(
            _query(held_out, features, int(index)) for index in chosen[:_QUERIES]
        ),
    )


def _one_of_each_class(held_out: LabeledArraySource, seed: int) -> NDArray[np.int64]:
    """Indices of a random record of every class in turn, so that no class fills the page."""
    order = np.random.default_rng(seed).permutation(len(held_out))
    _, first = np.unique(held_out.labels[order], return_index=True)
    chosen: NDArray[np.int64] = order[first]
    return chosen


@torch.no_grad()
def _reconstructions(
    model: PretrainModel, objective: Objective, images: torch.Tensor, seed: int
) -> tuple[Reconstruction, ...]:
    if not isinstance(objective, MaskedModelling):
        return ()
    model.eval()
    views = objective.views(images, seeded_generator(seed, "gallery"))
    triples = zip(
        views[0],
        objective.masked_images(model, views),
        objective.reconstruct(model, views),
        strict=True,
    )
    return tuple(
        Reconstruction(
            original=png_data_uri(original.numpy()),
            masked=png_data_uri(masked.numpy()),
            reconstructed=png_data_uri(reconstructed.numpy()),
        )
        for original, masked, reconstructed in triples
    )


def _query(
    held_out: LabeledArraySource, features: NDArray[np.float64], index: int
) -> NeighbourQuery:
    """The held-out images nearest to one of them by cosine similarity."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    similarity = unit @ unit[index]
    similarity[index] = -np.inf  # not its own neighbour
    nearest = np.argsort(-similarity)[:_NEIGHBOURS]
    return NeighbourQuery(
        picture=png_data_uri(held_out.images[index].numpy()),
        label=str(held_out.labels[index]),
        neighbours=tuple(
            Neighbour(
                picture=png_data_uri(held_out.images[other].numpy()),
                label=str(held_out.labels[other]),
            )
            for other in nearest
        ),
    )
