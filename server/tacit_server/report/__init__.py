"""A run's report at the coordinator: assembled from its checkpoint and its sites' accounts."""

from tacit_server.report.assembly import build_report, rounds_of
from tacit_server.report.deployed import deployed_report, write_deployed_report

__all__ = ["build_report", "deployed_report", "rounds_of", "write_deployed_report"]
