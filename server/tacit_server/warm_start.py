"""The free start: pretraining on public procedural images, which costs no privacy."""

from collections.abc import Callable

import torch

from tacit_common.objectives.contract import Objective, PretrainModel
from tacit_common.study import Study, WarmStartPlan
from tacit_common.training import mean_gradient, seeded_generator
from tacit_server.public import public_images

_CLIP_NORM = 1.0  # of the mean gradient, for stability alone: nothing here is private
_WARM_UP_SHARE = 0.1


def warm_start(
    model: PretrainModel,
    objective: Objective,
    study: Study,
    plan: WarmStartPlan,
    progress: Callable[[int, int], None],
) -> None:
    """Train `model` in place on a fresh batch of procedural images a step (AdamW, cosine)."""
    images_generator = seeded_generator(study.seed, "warm start", "images")
    views_generator = seeded_generator(study.seed, "warm start", "views")
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=plan.lr,
        total_steps=plan.steps + 1,
        pct_start=_WARM_UP_SHARE,
        cycle_momentum=False,
    )
    for step in range(plan.steps):
        batch = public_images(study, plan.batch_size, images_generator)
        mean_gradient(model, objective, batch, views_generator)
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
        optimizer.step()
        schedule.step()
        progress(step + 1, plan.steps)
