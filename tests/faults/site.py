"""Planted faults of a whole site: what it pays for, when, and what it says beside the noise."""

from collections.abc import Callable
from dataclasses import fields, replace

import torch

from tacit_client.records import read_records
from tacit_client.site import ReplyT, Site
from tacit_common.messages import ProbeRequest, Reply, Request, TrainReply, TrainRequest
from tacit_common.training import seeded_generator, views_for


def as_faulty(site: Site, fault: type[Site]) -> Site:
    """The same site, run by faulty software."""
    return fault(**{field.name: getattr(site, field.name) for field in fields(site)})


class PaysAfterwards(Site):
    """The ledger is written when the work is done."""

    def _pay(self, request: TrainRequest | ProbeRequest) -> None:
        pass

    def _train(self, request: TrainRequest) -> TrainReply:
        reply = super()._train(request)
        super()._pay(request)
        return reply


class ProbesForFree(Site):
    """A probe only measures, so it was thought to cost nothing."""

    def _once(
        self,
        request: TrainRequest | ProbeRequest,
        reply_type: type[ReplyT],
        work: Callable[[], ReplyT],
    ) -> ReplyT:
        if isinstance(request, ProbeRequest):
            return work()
        return super()._once(request, reply_type, work)


class TellsItsLoss(Site):
    """The mean training loss travels along, for the dashboard."""

    def _train(self, request: TrainRequest) -> TrainReply:
        reply = super()._train(request)
        resident = self._resident(request.plan.study)
        records = read_records(self.source, torch.arange(len(self.source)).numpy())
        with torch.no_grad():
            views = views_for(resident.model, resident.objective, records, seeded_generator(0))
            loss = resident.objective.loss(resident.model, views).mean()
        return replace(reply, train_loss=float(loss))


class DescribesItsCount(Site):
    """A site says how many records it holds, so that its update gets the weight it deserves."""

    def answer(self, request: Request, **witness: object) -> Reply:
        return Site.answer(replace(self, declared_units=len(self.source)), request)


def audits_for_free(site: Site, plan: object) -> str:
    """In place of an audit's payment: it is only a test, so it was thought to cost nothing."""
    return "audit-for-free"
