"""A person's consent, on the command line: `tacit site pending`, `approve` and `withdraw`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tacit_client.deployment.site_folder import SiteFolder
    from tacit_client.policy.approvals import Approvals
    from tacit_client.policy.outline import Outline
    from tacit_common.study import Study

SiteArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The site's folder.")]


def pending(folder: SiteArgument) -> None:
    """Show the studies that wait for somebody's consent, and those that have it."""
    from tacit_client.policy.approvals import SHOWN_DIGITS

    site, approvals = _open(folder)
    waiting, approved = approvals.pending(), approvals.all()
    for study in waiting:
        typer.echo(_outline(site, approvals, study).text())
        if site.read_policy().objections(study):
            typer.echo("          it would be refused whatever is agreed to\n")
            continue
        digest = study.digest()[:SHOWN_DIGITS]
        typer.echo(f"          to agree: tacit site approve {folder} {digest}\n")
    if not waiting:
        typer.echo("no study waits")
    for approval in approved:
        cost = "no privacy" if approval.epsilon is None else f"ε = {approval.epsilon:.4g}"
        when = approval.at.strftime("%Y-%m-%d %H:%M UTC")
        run = "for its next run" if approval.run is None else f"for run {_printable(approval.run)}"
        typer.echo(f"approved  {approval.digest[:12]}  {approval.study}, {run}, {cost}, {when}")


def approve(
    folder: SiteArgument,
    study: Annotated[
        str,
        typer.Argument(
            metavar="DIGEST|STUDY.toml",
            help="The beginning of a digest that `tacit site pending` shows (with --yes all "
            "32 digits of it), or a study's file.",
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Agree to one run of one study, exactly as it is.

    A change to it, or another run of it, has to be agreed to anew.
    """
    from tacit_common.errors import UsageError

    site, approvals = _open(folder)
    outline = _outline(site, approvals, _named(approvals, study, unseen=yes))
    text = outline.text()
    typer.echo(text)
    policy = site.read_policy()
    for objection in policy.objections(outline.study):
        raise UsageError(
            "nobody can agree to this study here",
            why=f"the site's policy refuses it: {objection.why}",
            fix="leave it, or change policy.toml first and look at the study again",
        )
    if not yes:
        typer.confirm("\nShall this site take part?", abort=True)
    approval = approvals.approve(
        outline.study, epsilon=outline.epsilon, delta=policy.delta, shown=text
    )
    typer.echo(f"approved  {approval.digest[:12]}  {approval.study}, for one run of it")


def withdraw(
    folder: SiteArgument,
    digest: Annotated[
        str, typer.Argument(metavar="DIGEST", help="The beginning of an approved study's digest.")
    ],
) -> None:
    """Take consent back. The study's next request is refused; what was paid stays paid."""
    _, approvals = _open(folder)
    found = approvals.named(digest)
    approvals.withdraw(found)
    typer.echo(f"withdrawn {found[:12]}")


def _open(folder: Path) -> "tuple[SiteFolder, Approvals]":
    from tacit_client.deployment.site_folder import SiteFolder

    site = SiteFolder.open(folder)
    return site, site.open_approvals()


def _outline(site: "SiteFolder", approvals: "Approvals", study: "Study") -> "Outline":
    from tacit_client.budget import load
    from tacit_client.policy.outline import outline

    ledger = load(site.ledger)[0] if site.ledger.exists() else None
    taken = [a for a in approvals.all() if a.digest == study.digest() and a.run is not None]
    return outline(study, site.read_policy(), ledger, in_new_run=bool(taken))


def _printable(text: str) -> str:
    """A name from outside, without anything that could move a cursor."""
    return "".join(character if character.isprintable() else "·" for character in text)


def _named(approvals: "Approvals", study: str, *, unseen: bool) -> "Study":
    from tacit_client.policy.approvals import SHORTEST_PREFIX, SHOWN_DIGITS
    from tacit_common.errors import UsageError
    from tacit_common.study_file import load_study

    if study.endswith(".toml"):
        return load_study(Path(study)).travelling()
    # Two studies whose digests begin alike can be made in minutes, and nobody looks at the study.
    digest = approvals.named(study, digits=SHOWN_DIGITS if unseen else SHORTEST_PREFIX)
    found = approvals.pending_study(digest)
    if found is None:
        raise UsageError(
            f"study {digest[:12]} does not wait",
            why="it is approved already",
            fix="withdraw that first if it shall be looked at again",
        )
    return found
