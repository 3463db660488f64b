"""Commands for whoever coordinates a federation: `tacit server …`.

One function a command. Heavy imports stand inside, so that `tacit --help` answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from tacit_common.commands.confirm import CardArgument, FingerprintOption, confirmed_card

FolderArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="The coordinator's folder.", show_default=False)
]
DaysOption = Annotated[int, typer.Option(help="How long the server's certificate counts.", min=1)]

server_app = typer.Typer(help="For whoever coordinates a federation.", no_args_is_help=True)


@server_app.callback()
def server() -> None:
    """Commands of a coordinator."""


@server_app.command()
def init(
    folder: FolderArgument,
    name: Annotated[
        str, typer.Option(help="The coordinator's name: small letters, digits and hyphens.")
    ],
    address: Annotated[str, typer.Option(help="host:port at which sites reach it from outside.")],
    listen: Annotated[
        str | None,
        typer.Option(
            help="host:port at which it listens on this machine; else the port of "
            "--address, at every interface."
        ),
    ] = None,
    superlink_port: Annotated[
        int, typer.Option(help="Port of Flower's SuperLink, on 127.0.0.1 alone.")
    ] = 9092,
    health: Annotated[
        str, typer.Option(help="host:port of the gRPC health service, or 'none'.")
    ] = "127.0.0.1:9444",
    days: DaysOption = 365,
) -> None:
    """Make a coordinator: certificates, keys, configuration, invitation and service files."""
    from tacit_server.deployment.folder import ServerConfig
    from tacit_server.deployment.init import init_server, next_steps

    settings = {
        "name": name,
        "address": address,
        "listen": listen or f"0.0.0.0:{address.rpartition(':')[2]}",
        "superlink_port": superlink_port,
        "health_address": None if health == "none" else health,
    }
    config = ServerConfig.parse(settings)
    typer.echo(next_steps(init_server(folder, config, days=days)))


@server_app.command()
def renew(folder: FolderArgument, days: DaysOption = 365) -> None:
    """Make a new certificate for the server; the sites' invitation stays as it is."""
    from tacit_server.deployment.certificate import renew_server_certificate
    from tacit_server.deployment.folder import ServerFolder

    renewal = renew_server_certificate(ServerFolder.open(folder), days)
    if renewal.old_expires is not None:
        typer.echo(f"the old certificate counts until {renewal.old_expires:%Y-%m-%d %H:%M} UTC")
    typer.echo(f"the new certificate counts until {renewal.new_expires:%Y-%m-%d %H:%M} UTC")
    typer.echo("a running server takes it up by itself, and its runs go on")


@server_app.command()
def run(folder: FolderArgument) -> None:
    """Run SuperLink, executor and gateway, and keep them up, until it is told to stop."""
    from tacit_server.deployment.supervisor import run_server

    run_server(folder)


RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's name, as `submit` printed it.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="As one JSON object.")]


@server_app.command()
def enroll(
    folder: FolderArgument, card: CardArgument, fingerprint: FingerprintOption = None
) -> None:
    """Let a site take part: its keys are pinned from here on."""
    from tacit_server.deployment.enrolling import enroll as enroll_site
    from tacit_server.deployment.folder import ServerFolder

    coordinator, sent = ServerFolder.open(folder), confirmed_card(card, fingerprint)
    known = enroll_site(coordinator, sent)
    later = "" if known else "; the SuperLink is told as soon as the server runs"
    typer.echo(f"'{sent.site}' is enrolled{later}")


@server_app.command()
def remove(
    folder: FolderArgument, site: Annotated[str, typer.Argument(help="An enrolled site.")]
) -> None:
    """Shut a site out again."""
    from tacit_server.deployment.enrolling import remove as remove_site
    from tacit_server.deployment.folder import ServerFolder

    remove_site(ServerFolder.open(folder), site)
    typer.echo(f"'{site}' takes part no more")


@server_app.command()
def submit(
    folder: FolderArgument,
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study to run.")],
    sites: Annotated[
        int | None,
        typer.Option(help="Begin as soon as so many sites have joined; else all enrolled.", min=1),
    ] = None,
    patience: Annotated[
        float, typer.Option(help="Begin with fewer sites after so many seconds.", min=0)
    ] = 3600.0,
) -> None:
    """Run a study over the enrolled sites; prints the run's name."""
    from tacit_common.study_file import load_study
    from tacit_server.deployment.folder import ServerFolder
    from tacit_server.deployment.submission import submit as submit_study

    run = submit_study(
        ServerFolder.open(folder), load_study(study), sites=sites, patience_s=patience
    )
    typer.echo("it begins when the sites have agreed: tacit site approve DIR STUDY.toml", err=True)
    typer.echo(run.name)


@server_app.command()
def status(
    folder: FolderArgument,
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="One run alone.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again each second.")] = False,
    json_: JsonOption = False,
) -> None:
    """Show sites and runs: who is connected, how far, what it cost, who refused and why."""
    from rich.console import Console

    from tacit_server.deployment.folder import ServerFolder
    from tacit_server.deployment.status import status_of
    from tacit_server.deployment.status_view import view, watch_live
    from tacit_server.deployment.submission import existing_run

    coordinator = ServerFolder.open(folder)
    if run is not None:
        existing_run(coordinator, run)
    if json_:
        typer.echo(status_of(coordinator).model_dump_json(indent=2))
    elif watch:
        watch_live(lambda: status_of(coordinator), run, Console())
    else:
        Console(highlight=False).print(view(status_of(coordinator), run))


@server_app.command()
def stop(folder: FolderArgument, run: RunArgument) -> None:
    """End a run. What is done stays, and it can be resumed."""
    from tacit_server.deployment.folder import ServerFolder
    from tacit_server.deployment.submission import stop as stop_run

    stop_run(ServerFolder.open(folder), run)
    typer.echo(f"'{run}' stops; go on with: tacit server resume {folder} {run}")


@server_app.command()
def resume(folder: FolderArgument, run: RunArgument) -> None:
    """Go on with a run that failed or was stopped, from its last checkpoint."""
    from tacit_server.deployment.folder import ServerFolder
    from tacit_server.deployment.submission import resume as resume_run

    resume_run(ServerFolder.open(folder), run)
    typer.echo(f"'{run}' goes on")


@server_app.command()
def models(folder: FolderArgument, json_: JsonOption = False) -> None:
    """List the encoders that runs have left, and on what terms they were trained."""
    from tacit_server.deployment.folder import ServerFolder
    from tacit_server.deployment.models import as_json
    from tacit_server.deployment.models import models as models_of

    found = models_of(ServerFolder.open(folder))
    if json_:
        typer.echo(as_json(found))
        return
    for model in found:
        typer.echo(f"{model.run}: {model.rounds} rounds, {model.privacy}\n  {model.folder}")
    if not found:
        typer.echo("no run has finished yet")
