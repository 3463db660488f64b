"""Commands that need neither a site nor a server: `tacit plan`, `report` and `health`.

Heavy imports stand inside the commands, so that `tacit --help` answers at once.
"""

from tacit_common.commands.health import health
from tacit_common.commands.plan import plan
from tacit_common.commands.report import report_app

__all__ = ["health", "plan", "report_app"]
