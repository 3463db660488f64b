"""The private gradient of Logit-DP: similarities are clipped, not losses.

    units → two views each → unit vectors → weights w_ij
                                             ↓
    pairs (i, j) → ∇s_ij, row by row → clip → Σ_ij w_ij · clip(∇s_ij)

Kong et al. 2023, arXiv 2310.03104, algorithm 1, with the bound of
`tacit_common.objectives.logit_dp.logit_dp_sensitivity`.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from tacit_client.dp_sgd import PerUnitGradients
from tacit_common.errors import PrivacyConfigError
from tacit_common.objectives.contract import PretrainModel
from tacit_common.objectives.logit_dp import LogitDP
from tacit_common.privacy.clipping import CompensatedSum, weighted_clipped_sum
from tacit_common.training import views_for


class LogitGradients:
    """Forms the weighted sum of clipped similarity gradients of one model and Logit-DP.

    A unit is one record. Attaches Opacus's hooks to `model`, as `PerUnitGradients` does.
    """

    def __init__(self, model: PretrainModel, objective: LogitDP) -> None:
        self._model = model
        self._objective = objective
        self._pair_gradients = PerUnitGradients(model, objective.pairs)

    @property
    def size(self) -> int:
        """Number of trained parameters, P."""
        return self._pair_gradients.size

    def l2_sensitivity(self, l2_clip_norm: float) -> float:
        """What one record changes in the sum over a sample of any size: (2B/τ)(1 + e^{2/τ})."""
        return self._objective.l2_sensitivity(l2_clip_norm)

    def clipped_sum(
        self,
        units: Iterable[Tensor],
        generator: torch.Generator,
        *,
        l2_clip_norm: float,
        augmentations: int,
        physical_batch: int,
    ) -> Tensor:
        """Σ_ij w_ij · clip(∇s_ij) over all pairs of the sample, float64 [P] on the CPU.

        With several augmentations it is the mean of that sum over as many draws of views;
        its sensitivity is that of one.

        Guarantees: one record changes the result by at most `l2_sensitivity(l2_clip_norm)`;
        a record whose embedding is not finite counts as not sampled; the gradient of a pair
        that is not finite counts as zero; no record, or one alone, gives exactly zero.

        All records of the sample are held at once, since every pair is needed; gradients
        only for `physical_batch` pairs.

        Raises:
            PrivacyConfigError: a unit holds more than one record.
        """
        records = _single_records(units)
        total = CompensatedSum(self.size)
        if records is not None:
            for _ in range(augmentations):
                one, two, weights = self._weigh(records, generator, physical_batch)
                self._add_pairs(total, one, two, weights, l2_clip_norm, physical_batch)
        return total.value / augmentations

    @torch.no_grad()
    def _weigh(
        self, records: Tensor, generator: torch.Generator, physical_batch: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Both views [n, ...] of the records that count, and the weights of their pairs [n, n].

        Whether a record counts depends on its own embeddings alone, and it is decided before
        there are weights: one that does not has never been in anybody's denominator.
        """
        views: tuple[list[Tensor], list[Tensor]] = ([], [])
        vectors: tuple[list[Tensor], list[Tensor]] = ([], [])
        for start in range(0, len(records), physical_batch):
            chunk = records[start : start + physical_batch]
            padded = _padded(chunk, physical_batch)
            drawn = views_for(self._model, self._objective, padded, generator)
            for side, view in enumerate(drawn):
                views[side].append(view[: len(chunk)])
                vectors[side].append(self._objective.embed(self._model, view)[: len(chunk)])
        one, two = (torch.cat(parts) for parts in vectors)  # [n, D]
        counts = one.isfinite().all(dim=1) & two.isfinite().all(dim=1)  # [n]
        first, second = (torch.cat(parts)[counts] for parts in views)
        return first, second, self._objective.logit_weights(one[counts], two[counts])

    def _add_pairs(
        self,
        total: CompensatedSum,
        one: Tensor,
        two: Tensor,
        weights: Tensor,
        l2_clip_norm: float,
        physical_batch: int,
    ) -> None:
        """Add w_ij · clip(∇s_ij) of every pair (i, j), in passes of equal size.

        The passes are filled up with zeros whose gradients are dropped, for the reason that
        `PerUnitGradients.clipped_sum` gives.
        """
        n = len(one)
        if n < 2:
            return  # the only weight is zero
        for start in range(0, n * n, physical_batch):
            pairs = torch.arange(start, min(start + physical_batch, n * n), device=one.device)
            i, j = pairs // n, pairs % n
            filled = (_padded(one[i], physical_batch), _padded(two[j], physical_batch))
            rows = [row[: len(pairs)] for row in self._pair_gradients.rows(filled)]
            total.add(weighted_clipped_sum(rows, weights[i, j], l2_clip_norm).cpu())


def _single_records(units: Iterable[Tensor]) -> Tensor | None:
    """All records in one tensor [n, ...]; None if there are none."""
    drawn = list(units)
    if any(len(records) != 1 for records in drawn):
        raise PrivacyConfigError(
            "objective 'logit_dp' was given a unit with several records",
            why="its sensitivity is that of one record, one pair of views",
            fix="set privacy.unit = 'record', or use an objective that is legal for subjects",
        )
    return torch.cat(drawn) if drawn else None


def _padded(rows: Tensor, size: int) -> Tensor:
    """`rows` [n, ...] followed by zeros up to `size` rows."""
    return torch.cat([rows, rows.new_zeros(size - len(rows), *rows.shape[1:])])
