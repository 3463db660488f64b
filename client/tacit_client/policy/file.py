"""The policy's file: read with errors that name the field, written so that it explains itself."""

from pathlib import Path

from tacit_client.policy.model import SitePolicy
from tacit_common.toml_file import commented_toml, read_toml_file, write_toml_file

_OPENING = (
    "What this site allows. It is read here and nowhere else, and no server can change it. "
    "Nothing that bears on privacy has a default.\n\n"
    "Every field: docs/policy.md."
)


def read_policy(path: Path) -> SitePolicy:
    """The policy in a file.

    Raises:
        UsageError: it is missing, not TOML, or any field is wrong.
    """
    return read_toml_file(
        path, SitePolicy, what="the site's policy", fix="mend the file; docs/policy.md lists fields"
    )


def write_policy(path: Path, policy: SitePolicy) -> None:
    """Write a policy that `read_policy` reads back, with what each field means above it.

    Raises:
        UsageError: it cannot be written.
    """
    write_toml_file(path, policy, opening=_OPENING)


def policy_toml(policy: SitePolicy) -> str:
    """The text of a policy's file."""
    return commented_toml(policy, opening=_OPENING)
