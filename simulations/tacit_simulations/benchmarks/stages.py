"""Which functions make up which stage of a round.

They are named, not imported, so that one table holds all; a test asks for every name, and a
stage whose function has moved cannot be missed silently.
"""

import pkgutil
from collections.abc import Iterable, Mapping

from tacit_simulations.benchmarks.measure import Stages

Table = Mapping[str, tuple[str, ...]]
"""Stage to "module:name" or "module:Class.name", as where they are looked up when called."""

SERVER: Table = {
    "encode the request": ("tacit_server.app:encode",),
    "decode a reply": ("tacit_server.app:decode_reply",),
    "exchange": ("tacit_server.app:GridExchange.ask",),  # on Ray: waiting for the sites
    "hash of the parameters": ("tacit_server.rounds:parameters_sha256",),
    "check and mean of updates": ("tacit_server.run:run_round",),
    "strategy": ("tacit_server.strategies:MomentumStrategy.apply",),
    "ε so far": ("tacit_server.rounds:Federation.epsilon_after",),
    "public loss": ("tacit_server.run:Coordinator._public_loss",),
    "checkpoint": ("tacit_server.checkpoint:CheckpointStore.write",),
    "event log": ("tacit_server.run_log:RunLog.publish",),
}

SITE: Table = {
    "delivery with copies": (
        "tacit_simulations.engine:InProcessGrid.push_messages",
        "tacit_simulations.engine:InProcessGrid.pull_messages",
    ),
    "open a site": ("tacit_simulations.sites:SimulatedSites.open",),
    "decode the request": ("tacit_client.app:decode_request",),
    "encode a reply": ("tacit_client.app:encode",),
    "site": ("tacit_client.site:Site.answer",),
    "identity of the request": ("tacit_common.messages:RoundPlan.key",),
    "resident model": ("tacit_client.site:resident_model",),
    "policy": ("tacit_client.policy:SitePolicy.check",),
    "ledger: look up": (
        "tacit_client.ledger:Ledger.is_reserved",
        "tacit_client.ledger:Ledger.is_committed",
        "tacit_client.ledger:Ledger.events",
    ),
    "ledger: reserve": ("tacit_client.ledger:Ledger.reserve",),
    "ledger: commit": ("tacit_client.ledger:Ledger.commit",),
    "outbox": ("tacit_client.outbox:Outbox.find", "tacit_client.outbox:Outbox.store"),
}

TRAINING: Table = {
    "training, beyond what follows": ("tacit_client.site:Site._train",),
    "parameters in and out": (
        "tacit_client.pretrain:load_parameters",
        "tacit_client.pretrain:change_since",
    ),
    "sample": (
        "tacit_client.pretrain:secret_poisson_sample",
        "tacit_client.pretrain:secret_generator",
        "tacit_client.pretrain:seeded_poisson_sample",
    ),
    "read": (
        "tacit_client.pretrain:PrivateStepGradient._read",
        "tacit_client.pretrain:read_records",
    ),
    "views": (
        "tacit_client.book_keeping:views_for",
        "tacit_client.dp_sgd:views_for",
        "tacit_common.training:views_for",
    ),
    "forward": ("tacit_common.objectives.masked:MaskedModelling.loss",),
    "backward": ("torch:Tensor.backward",),
    "norms": (
        "tacit_client.book_keeper:clip_weights",
        "tacit_common.privacy.clipping:_row_scale",
        "tacit_common.privacy.clipping:_scaled_norms",
    ),
    "weighted sum": (
        "tacit_client.book_keeper:BookKeeper._weighted_sum",
        "tacit_common.privacy.clipping:_sum_of_clipped",
        "tacit_common.privacy.clipping:CompensatedSum.add",
    ),
    "noise": ("tacit_common.privacy.noise:LatticeGaussian.apply",),
    "optimiser": ("torch.optim:SGD.step",),
}

ONCE_A_ROUND = frozenset(
    {
        "encode the request",
        "hash of the parameters",
        "strategy",
        "ε so far",
        "public loss",
        "checkpoint",
        "event log",
        "policy",  # asked by every site, computed once a process
        Stages.REST,
    }
)


def watch_all(stages: Stages, tables: Iterable[Table]) -> None:
    """Count the time in every function of the tables.

    Raises:
        RuntimeError: a function has moved.
    """
    for table in tables:
        for stage, names in table.items():
            for name in names:
                owner, last = _owner_of(name)
                stages.watch(stage, owner, last)


def _owner_of(name: str) -> tuple[object, str]:
    """Whose attribute a named function is, and the attribute."""
    module, _, path = name.partition(":")
    owner, _, last = path.rpartition(".")
    try:
        return pkgutil.resolve_name(f"{module}:{owner}" if owner else module), last
    except (ImportError, AttributeError):
        raise RuntimeError(f"there is no '{name}' any more: mend the benchmark's stages") from None
