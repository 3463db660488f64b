"""What a site allows, and what a person there has agreed to.

model       the policy: one study, one charge, allowed or not
sections    its parts beside the cap; hours: when the site works
refusals    what is wrong, in words that stay at the site
file        policy.toml, read and written; reference: its documentation
approvals   the studies that a person consented to
outline     a study in the site's own terms, for that person; consent_command: the commands
"""

from tacit_client.policy.model import SitePolicy

__all__ = ["SitePolicy"]
