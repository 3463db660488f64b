"""Commands for whoever runs a witness: `tacit witness …`.

Heavy imports stand inside the commands, so that `tacit --help` answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from tacit_common.commands.confirm import CardArgument, FingerprintOption, confirmed_card

FolderArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="The witness's folder.", show_default=False)
]

witness_app = typer.Typer(
    help="For whoever countersigns the ledgers of sites.", no_args_is_help=True
)


@witness_app.callback()
def witness() -> None:
    """Commands of a witness."""


@witness_app.command()
def init(
    folder: FolderArgument,
    address: Annotated[str, typer.Option(help="host:port at which sites reach it.")],
    listen: Annotated[
        str | None,
        typer.Option(help="host:port at which it listens; else 0.0.0.0 and the port of --address."),
    ] = None,
    name: Annotated[
        str, typer.Option(help="The witness's name: small letters, digits and hyphens.")
    ] = "witness",
    health: Annotated[
        str, typer.Option(help="host:port of the gRPC health service, or 'none'.")
    ] = "127.0.0.1:9447",
) -> None:
    """Make a witness: its keys, its certificate authority, and the card for the sites."""
    import shlex

    from tacit_server.witness.folder import WitnessConfig, WitnessFolder, init_witness

    settings = {
        "name": name,
        "address": address,
        "listen": listen or f"0.0.0.0:{address.rpartition(':')[2]}",
        "health_address": None if health == "none" else health,
    }
    card = init_witness(folder, WitnessConfig.parse(settings))
    made = WitnessFolder(folder)
    where = shlex.quote(str(made.path))
    typer.echo(f"The witness '{card.witness}' is ready in {where}. Next:")
    typer.echo(f"  1. start it       tacit witness run {where}")
    typer.echo(f"                    (or as a service: {made.service}/tacit-witness.service)")
    typer.echo(f"  2. tell a site    send it {made.card_file}, and compare by telephone:")
    typer.echo(f"                    {card.fingerprint}")
    typer.echo(f"  3. admit it       tacit witness admit {where} NAME.site.json, which it sends")


@witness_app.command()
def admit(
    folder: FolderArgument, card: CardArgument, fingerprint: FingerprintOption = None
) -> None:
    """Serve a site, from now on; a running witness need not be started again."""
    from tacit_common.certificates import expires_at
    from tacit_server.witness.admission import Admission
    from tacit_server.witness.folder import WitnessFolder

    witness, site = WitnessFolder.open(folder), confirmed_card(card, fingerprint)
    Admission(witness.admitted).admit(site)
    until = expires_at(site.witness_certificate.encode())
    typer.echo(f"'{site.site}' is admitted; its certificate counts until {until:%Y-%m-%d}")


@witness_app.command()
def run(folder: FolderArgument) -> None:
    """Countersign heads until SIGTERM or Ctrl-C."""
    import logging
    import os
    import signal
    import threading

    # gRPC writes a line to stderr for every stranger whose handshake fails.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from tacit_server.witness.folder import WitnessFolder
    from tacit_server.witness.service import WitnessService

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    asked_to_end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked_to_end.set())
    opened = WitnessFolder.open(folder)
    with WitnessService(opened) as service:
        typer.echo(f"the witness '{opened.config().name}' listens on port {service.port}")
        asked_to_end.wait()
    typer.echo("the witness has ended")


@witness_app.command()
def log(
    folder: FolderArgument,
    json_: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Show where each site's ledger stands, and the proof of any fork."""
    from tacit_server.witness.account import account_of
    from tacit_server.witness.folder import WitnessFolder

    account = account_of(WitnessFolder.open(folder))
    typer.echo(account.model_dump_json(indent=2) if json_ else account.as_text())
