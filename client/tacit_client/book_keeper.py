"""Clipped sums of per-row gradients without the gradients, for any model and loss.

    forward, keeping inputs → backward, keeping output gradients → norms → weights → sum

Book-Keeping (Bu et al. 2022, arXiv 2210.00038, algorithm 1). Parameters take no gradient in
the backward pass, so the weighted sum costs what their ordinary gradient would have cost.
"""

import logging
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from tacit_client.gradients import require_rows
from tacit_client.layer_pairs import LayerPairs
from tacit_client.tape import Tape, refusal_of, watched_layers
from tacit_common.errors import PrivacyConfigError
from tacit_common.privacy.clipping import clip_factors

_MOST_CANCELLATION = 2.0**-8
"""The least norm that a unit is clipped by, over the length of its terms (`clip_weights`)."""

_log = logging.getLogger(__name__)


class BookKeeper:
    """Forms clipped sums of the gradients of rows, or of groups of rows, of one pass.

    Hooks are on the model only while a pass runs. Layers without a rule have their per-unit
    gradients formed; which, is logged once.

    With Opacus's Poisson sampling, noise and accounting::

        optimizer = DPOptimizerFastGradientClipping(
            inner, noise_multiplier=σ, max_grad_norm=C, expected_batch_size=b
        )
        optimizer.attach_step_hook(accountant.get_optimizer_hook_fn(sample_rate=q))
        keeper = BookKeeper(model)
        for x, y in DPDataLoader.from_data_loader(loader):
            keeper.fill_gradients(
                lambda: cross_entropy(model(x), y, reduction="none"), rows=len(x), l2_clip_norm=C
            )
            optimizer.step()

    Raises:
        PrivacyConfigError: the model has a layer whose gradients cannot be kept as pairs.
    """

    def __init__(self, model: nn.Module) -> None:
        reason = refusal_of(model)
        if reason is not None:
            raise PrivacyConfigError(
                "per-unit gradients cannot be clipped without being formed",
                why=reason,
                fix="use PerUnitGradients for this model",
            )
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._layers = watched_layers(model)
        if self.fallbacks:
            _log.info("per-unit gradients are formed for: %s", ", ".join(self.fallbacks))

    @property
    def size(self) -> int:
        """Number of trained parameters, P."""
        return sum(parameter.numel() for parameter in self._parameters)

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Layers without a rule, whose per-unit gradients are formed: "name (type)"."""
        return tuple(layer.described for layer in self._layers if layer.rule is None)

    def fill_gradients(
        self, loss_of_rows: Callable[[], Tensor], *, rows: int, l2_clip_norm: float
    ) -> None:
        """Set every parameter's `.grad` to the sum over rows of the clipped gradients.

        `loss_of_rows` runs the model on a batch of `rows` rows and returns their losses,
        [rows]; it is not called for an empty batch. No noise is added.

        The sum is rounded to the parameters' own type, which can add to a row's influence: in
        float32 by about 2⁻²⁴ of the sum's length. `clipped_sum` has no such rounding.

        Raises:
            PrivacyConfigError: as `clipped_sum`.
        """
        if rows:
            used = torch.ones(rows, 1, dtype=torch.bool)
            total = self.clipped_sum(loss_of_rows, used, units=rows, l2_clip_norm=l2_clip_norm)
        else:
            total = self._parameters[0].new_zeros(self.size)
        for parameter, part in self._parts(total):
            parameter.grad = part.to(parameter.dtype, copy=True)

    def clipped_sum(
        self,
        loss_of_rows: Callable[[], Tensor],
        used: Tensor,
        *,
        units: int,
        l2_clip_norm: float,
    ) -> Tensor:
        """Sum over the first `units` units of their clipped gradient, float64 [P].

        `used` [U, R], bool, says which of each unit's R rows, next to one another in the batch,
        count; a unit's gradient is the mean over them.

        Guarantees: what `BookKeepingGradients` says of one unit's influence; a unit whose
        gradient is not finite contributes exactly zero; the model is left as it was.

        Raises:
            PrivacyConfigError: a layer or the loss did what cannot be kept, or the pass has more
                rows than rounding allows.
        """
        tape = Tape(self._layers, rows=used.numel())
        with tape.recording(), torch.enable_grad():
            tape.backward(require_rows(loss_of_rows(), used.numel()))
        device = self._parameters[0].device
        pairs = tape.pairs(used.to(device), units)
        counts = used[:units].sum(dim=1).to(device, torch.float64)
        return self._weighted_sum(pairs, counts, l2_clip_norm)

    def _weighted_sum(self, pairs: list[LayerPairs], counts: Tensor, l2_clip_norm: float) -> Tensor:
        """Σ_i of the clipped gradients, float64 [P]; parameters no loss reached have zeros.

        `counts` [U] says how many rows each unit's gradient is the mean of. Takes `pairs`.
        """
        total = counts.new_empty(self.size)
        places = dict(self._parts(total))
        reached = {parameter for one in pairs for parameter in one.parameters}
        for parameter in places.keys() - reached:
            places[parameter].zero_()
        weights = clip_weights(pairs, counts, l2_clip_norm)
        finite = weights > 0
        if not bool(finite.any()):
            return total.zero_()
        everyone = bool(finite.all())
        while pairs:  # what has been added up is no longer held
            one = pairs.pop()
            if everyone:
                one.write_sum(weights, places)
            else:  # the slow path: what is not finite is left out, not multiplied
                one.of_units(finite).write_sum(weights[finite], places)
        return total

    def _parts(self, total: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter and its part of `total` [P], in its shape."""
        parts = torch.split(total, [parameter.numel() for parameter in self._parameters])
        for parameter, part in zip(self._parameters, parts, strict=True):
            yield parameter, part.view(parameter.shape)


def clip_weights(pairs: Sequence[LayerPairs], counts: Tensor, l2_clip_norm: float) -> Tensor:
    """What to multiply each unit's summed gradient by, float64 [U]; 0 if it is not finite.

    `counts` [U] says how many rows a unit's gradient is the mean of.

    Guarantees: weight · true norm is at most C·(1 + 1e-12), whatever cancels: a layer's norms
    have their rounding added. Weight · terms is at most 2⁸·C: a unit is clipped by at least
    2⁻⁸ of the length of its terms, Σ_t ‖g_t‖‖a_t‖ joint over layers. So a unit is shortened
    needlessly only if over 255/256 of its terms cancel.
    """
    squares, terms = torch.zeros_like(counts), torch.zeros_like(counts)
    for one in pairs:
        norms = one.norms()
        squares += norms.squares
        terms += norms.terms
    lengths = torch.maximum(squares.sqrt(), terms.sqrt() * _MOST_CANCELLATION)
    return clip_factors(lengths / counts, l2_clip_norm) / counts
