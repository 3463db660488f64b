"""Commands that need neither a site nor a server: `tacit plan` and `tacit report`.

Heavy imports stand inside the commands, so that `tacit --help` answers at once.
"""

from tacit_common.commands.plan import plan
from tacit_common.commands.report import report_app

__all__ = ["plan", "report_app"]
