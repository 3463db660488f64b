"""Logit-DP: contrast between the records of a sample, with a bound on what one record does.

Kong et al. 2023, arXiv 2310.03104 (Kong, Muñoz Medina and Ribero). In InfoNCE the loss of a
record depends on every other, but only through the matrix of similarities. So the gradient
of each *similarity* is clipped, and the clipped ones are added up with the weights that the
chain rule gives them. The objective is here; `tacit_client.logit_dp` forms the sum.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tacit_common.encoders.contract import Encoder
from tacit_common.errors import PrivacyConfigError
from tacit_common.objectives.contract import Coupling, PretrainModel, Views
from tacit_common.objectives.contrastive import project, projector, two_views
from tacit_common.study import LogitDPPlan, ViewsPlan


class LogitDP:
    """InfoNCE whose similarities are clipped one by one (Kong et al. 2023, arXiv 2310.03104).

    Row i of the loss is −log softmax of s_i1/τ, …, s_in/τ at i, where s_ij is the cosine
    similarity of record i's first view and record j's second, in one direction only. Its
    gradient is Σ_ij w_ij ∇s_ij with w_ij = (softmax_ij − [i = j])/τ. Under privacy each ∇s_ij
    is clipped to B = `privacy.l2_clip_norm`; one record then changes the sum by at most
    (2B/τ)(1 + e^{2/τ}), however many records are drawn, and the noise is scaled to that:
    16.8·B at τ = 1, 3.7·B at τ = 2, 1.3·B at τ = 4. `logit_dp_sensitivity` derives it.

    A step costs as many gradients as there are pairs in its sample: n² for n records.
    """

    coupling = Coupling.LOGITS

    def __init__(self, plan: LogitDPPlan, views_plan: ViewsPlan) -> None:
        self._plan = plan
        self._views_plan = views_plan

    def build_head(self, encoder: Encoder) -> nn.Module:
        """The projector."""
        return projector(encoder.embed_dim, self._plan.projection_dim)

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        """Two random views of every image, [B, C, H, W] each."""
        return two_views(batch, self._views_plan, generator)

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        """InfoNCE of every record against all of the batch, [B]: for use without privacy."""
        one, two = (self.embed(model, view) for view in views)  # [B, D]
        logits = one @ two.T / self._plan.temperature
        itself = torch.arange(len(one), device=one.device)
        return F.cross_entropy(logits, itself, reduction="none")

    def embed(self, model: PretrainModel, view: Tensor) -> Tensor:
        """Unit vectors [B, D] of one view [B, C, H, W]."""
        return project(model, view)

    def logit_weights(self, one: Tensor, two: Tensor) -> Tensor:
        """∂(Σ_i loss_i)/∂s_ij from the unit vectors of both views, [B, D] each: float64 [B, B].

        Guarantees: each row sums to zero up to rounding; a row's absolute values sum to at
        most 2/τ; both hold for any finite `one` and `two`, because similarities are held to
        [−1, 1], which is what the sensitivity rests on.
        """
        similarity = (one.double() @ two.double().T).clamp(-1, 1)  # [B, B]
        chosen = (similarity / self._plan.temperature).softmax(dim=1)
        itself = torch.eye(len(one), dtype=torch.float64, device=one.device)
        return (chosen - itself) / self._plan.temperature

    def l2_sensitivity(self, l2_clip_norm: float) -> float:
        """What one record changes in the clipped sum, for samples of every size."""
        return logit_dp_sensitivity(
            l2_clip_norm=l2_clip_norm, temperature=self._plan.temperature, records=None
        )

    @property
    def pairs(self) -> "PairSimilarity":
        """What is differentiated and clipped: an objective whose row is a pair of images."""
        return PairSimilarity(self)


class PairSimilarity:
    """The similarity s of a pair of images as a loss per row, [B].

    Separable, so the machinery for gradients per row serves, and the same checks apply to it
    as to any objective that clips per row.
    """

    coupling = Coupling.NONE

    def __init__(self, objective: LogitDP) -> None:
        self._objective = objective

    def build_head(self, encoder: Encoder) -> nn.Module:
        """The projector of the objective that it belongs to."""
        return self._objective.build_head(encoder)

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        """Pairs of equal records: two views of every image, [B, C, H, W] each."""
        return self._objective.views(batch, generator)

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        """Cosine similarity of row i of the first view and row i of the second, [B]."""
        one, two = (self._objective.embed(model, view) for view in views)  # [B, D]
        return (one * two).sum(dim=1)


def logit_dp_sensitivity(*, l2_clip_norm: float, temperature: float, records: int | None) -> float:
    """Bound on what adding or removing one record changes in Σ_ij w_ij g_ij, in L2 norm.

    `records` is the size n of the larger sample; None gives the supremum over all n, which
    is what a Poisson sample needs: its size is random and private, and cutting it off at
    some n would let one record push out another.

    The claim. Let g_ij be any vectors of norm at most B and s_ij any numbers in [−1, 1], each
    a function of records i and j alone; p_ij = exp(s_ij/τ) / Σ_k exp(s_ik/τ); w_ij =
    (p_ij − [i = j])/τ; E = e^{2/τ}. One record, say the n-th, changes the sum by at most

        Δ_n = (2B/τ) · [ (1 − 1/(1 + (n−1)E)) + (n−1)E/(E + n − 1) ]  <  (2B/τ)(1 + E).

    The proof. Mark what belongs to the sample without record n by a dash.

    1. *Row n is new.* It adds Σ_j w_nj g_nj, whose norm is at most B·Σ_j |w_nj| =
       (B/τ)·((1 − p_nn) + Σ_{j<n} p_nj) = (2B/τ)(1 − p_nn). The least p_nn has s_nn = −1 and
       all other s_nj = 1: p_nn ≥ e^{−1/τ}/(e^{−1/τ} + (n−1)e^{1/τ}) = 1/(1 + (n−1)E).
    2. *Every row i < n gives way.* Record n adds one term to the sum below the fraction, so
       p_ij = p′_ij (1 − p_in) for j < n; the 1 on the diagonal cancels. The row changes by
       (p_in/τ)·(g_in − Σ_{j<n} p′_ij g_ij), and since the p′_ij sum to 1 its norm is at most
       2B·p_in/τ. The largest p_in has s_in = 1 and all other s_ij = −1: p_in ≤ E/(E + n − 1).
       There are n − 1 such rows.
    3. Adding up gives Δ_n. Both terms in the brackets grow with n, towards 1 and E.

    The bound is tight: two-dimensional linear encoders come as near to Δ_n as one likes, for
    every n and τ (tests/client/test_logit_gradients.py). For one record alone it is 0: p_11 = 1.

    What a record may be. Only that g_ij and s_ij belong to records i and j was used, and that
    g_ij is bounded. So a gradient that is not finite may count as zero, which has norm 0 and
    is known from i and j; and a record that its own data disqualify may be left out before
    any weight is formed, which is the removal that was just bounded. Zero-out adjacency
    means that removal. Replacing one record by another is a removal and an addition: 2Δ.

    The mean over K draws of views has the same bound: it is the mean of K such sums, and in
    each, with the views of all other records held fixed, one record changes at most Δ.

    In floats. With unit vectors of D entries, the computed weights of one row are off by at
    most (D + n + 8)(1 + 2/τ)·2⁻⁵²/τ in the sum of their absolute values. All rows of two
    neighbouring samples together move the sums by less than 2⁻²²·Δ for n(D + n + 8) ≤ 2³⁰.
    Clipping and adding up cost what `weighted_clipped_sum` says. `LatticeGaussian` holds
    2⁻²⁰ of the sensitivity for both.

    Raises:
        PrivacyConfigError: an argument is out of range, or the bound is not finite.
    """
    if not (math.isfinite(l2_clip_norm) and l2_clip_norm > 0):
        raise PrivacyConfigError(
            f"l2_clip_norm {l2_clip_norm} bounds nothing",
            why="it is the largest L2 norm of the gradient of one similarity",
            fix="give a positive, finite number",
        )
    # Below it e^{2/τ} no longer fits a float64; the bound is of no use long before.
    if not (math.isfinite(temperature) and temperature > 2 / 700):
        raise PrivacyConfigError(
            f"temperature {temperature} has no usable sensitivity",
            why="it grows as exp(2/temperature)",
            fix="give a temperature of 1 or more",
        )
    if records is not None and records < 1:
        raise PrivacyConfigError(
            f"a sample of {records} records has no record to remove",
            why="the larger of two neighbouring samples holds at least one",
            fix="give 1 or more, or None for samples of every size",
        )
    scale = 2 * l2_clip_norm / temperature
    ratio = math.exp(2 / temperature)  # E
    if records is None:
        return scale * (1 + ratio)
    others = records - 1
    own_row = 1 - 1 / (1 + others * ratio)
    other_rows = others * ratio / (ratio + others)
    return scale * (own_row + other_rows)
