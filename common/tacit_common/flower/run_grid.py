"""The part of Flower's grid that is the same wherever the nodes are."""

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run


class RunGrid(Grid):
    """A grid of one run."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def set_run(self, run: Run) -> None:
        """Flower's interface; a run is set from the start."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's interface."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message from the server to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)
