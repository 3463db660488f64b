"""The check that two gradient paths are one: what was shown of the first holds for the second.

Rows are checked on a path that forms them. Where another path clips, which forms none, its
sums must be those of the first: a parameter that is used behind a layer's back, for example,
would be missing in it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tacit_common.objectives.contract import Objective, PretrainModel
from tacit_common.privacy.separability.checked_copy import CheckedCopy, in_float64
from tacit_common.privacy.separability.influence import TOLERANCE
from tacit_common.privacy.separability.units import UNCLIPPED, ClippedSumPath
from tacit_common.privacy.separability.violation import Clause, Violation, refusing_errors


def check_same_sums(
    model: PretrainModel,
    objective: Objective,
    units: Sequence[Tensor],
    paths: tuple[ClippedSumPath, ClippedSumPath],
) -> None:
    """Refuse two paths whose sums differ, of all gradients clipped or of none.

    `units` are public or synthetic. Works on copies in float64.

    Raises:
        PrivacyConfigError: the sums differ, or a probe cannot be run.
    """
    name = type(objective).__name__
    with refusing_errors(name), torch.random.fork_rng(devices=[]):
        first = CheckedCopy.of(model, objective)
        second = first.twin()
        members = [in_float64(unit) for unit in units]
        one, two = paths[0](first.model, first.objective), paths[1](second.model, second.objective)
        norm = UNCLIPPED
        for _ in range(2):
            sums = [
                path.clipped_sum(
                    members,
                    torch.Generator().manual_seed(0),
                    l2_clip_norm=norm,
                    augmentations=1,
                    physical_batch=sum(map(len, members)),
                )
                for path in (one, two)
            ]
            apart = float((sums[0] - sums[1]).abs().max())
            if not apart <= TOLERANCE * float(sums[0].abs().max()):
                raise Violation(Clause.TOTAL, "on the path that clips").refusal(name)
            norm = float(sums[0].norm()) / (10 * len(members))
