"""What it takes to call a ServerApp and a ClientApp outside of Flower's own processes."""

from flwr.app import Context, RecordDict, UserConfig
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["Run", "begin_task", "make_context"]


def begin_task(*, run_id: int, node_id: int) -> None:
    """Say whose messages this process makes from here on; Flower makes none without."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, node_id


def make_context(*, run_id: int, node_id: int, node_config: UserConfig) -> Context:
    """A context for an app, which carries no state from call to call."""
    return Context(
        run_id=run_id,
        node_id=node_id,
        node_config=node_config,
        state=RecordDict(),
        run_config={},
    )
