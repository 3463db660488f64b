"""Accepting a site's card: by its fingerprint, which its operator read out on another channel."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tacit_common.enrolment import SiteCard

CardArgument = Annotated[
    Path, typer.Argument(metavar="NAME.site.json", help="The card that the site sent.")
]
FingerprintOption = Annotated[
    str | None,
    typer.Option(help="The card's fingerprint, as the site's operator read it out; else asked."),
]


def confirmed_card(path: Path, fingerprint: str | None) -> "SiteCard":
    """The card in a file, if it is the one that the site's operator has.

    Raises:
        UsageError: it is no card; or no fingerprint is given and there is nobody to ask.
        IdentityError: it is not genuine, or has another fingerprint.
        typer.Abort: whoever was asked said no.
    """
    from tacit_common.enrolment import read_site_card
    from tacit_common.errors import UsageError

    card = read_site_card(path)
    if fingerprint is not None:
        card.require_fingerprint(fingerprint)
    elif sys.stdin.isatty():
        typer.echo(f"site '{card.site}' has the fingerprint {card.fingerprint}")
        if not typer.confirm("Did its operator read out the same, over another channel?"):
            raise typer.Abort
    else:
        raise UsageError(
            f"the card of '{card.site}' is not confirmed",
            why="no fingerprint is given, and there is no terminal to ask at",
            fix="let the site's operator read it out, and give --fingerprint",
        )
    return card
