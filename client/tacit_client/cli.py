"""Commands for whoever has data: `tacit embed` and `tacit site …`.

One function a command. Heavy imports stand inside, so that `tacit --help` answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from tacit_client.consent_command import approve, pending, withdraw
from tacit_client.deployment.init_command import init

FolderArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="The site's folder.", show_default=False)
]


def embed(
    encoder: Annotated[Path, typer.Argument(help="An exported encoder: RUN/encoder.")],
    data: Annotated[
        Path, typer.Argument(help="Images: .npy, .npz, a folder, .parquet, .csv or .jsonl.")
    ],
    out: Annotated[
        Path, typer.Option(help="Where the features go: a .npy or a .parquet file.")
    ] = Path("features.npy"),
    plugin: Annotated[
        list[str] | None,
        typer.Option(help="What a plug-in encoder's name means: name=module:attribute."),
    ] = None,
) -> None:
    """Write the features of new data, one row a record."""
    from tacit_client.embedding import embed_data, parse_plugins, write_features

    features = embed_data(encoder, data, parse_plugins(plugin or []))
    write_features(out, features)
    typer.echo(f"{len(features)} records, {features.shape[1]} features each: {out}")


site_app = typer.Typer(help="For whoever runs a data site.", no_args_is_help=True)
site_app.command()(init)
site_app.command()(pending)
site_app.command()(approve)
site_app.command()(withdraw)


@site_app.callback()
def site() -> None:
    """Commands of a data site."""


@site_app.command()
def run(folder: FolderArgument) -> None:
    """Answer the coordinator until it is stopped: connected outwards, with installed code only."""
    from tacit_client.deployment.agent import run_agent
    from tacit_client.deployment.site_folder import SiteFolder
    from tacit_common.files import owner_only

    with owner_only():
        run_agent(SiteFolder.open(folder), notify=typer.echo)


@site_app.command()
def doctor(
    folder: FolderArgument,
    json_: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Check everything that the site needs, and say how to mend what is wrong."""
    from tacit_client.deployment.doctor import examine
    from tacit_client.deployment.site_folder import SiteFolder

    site = SiteFolder(folder)
    site.require_site()
    found = examine(site)
    if json_:
        typer.echo(found.model_dump_json(indent=2))
    else:
        for line in found.lines():
            typer.echo(line)
    if found.failed:
        raise typer.Exit(1)


@site_app.command()
def inspect(folder: FolderArgument) -> None:
    """Show what the site holds, for its operator's eyes alone: nothing of it is sent."""
    from rich.console import Console

    from tacit_client.deployment.inspection import inspect_data, print_inspection
    from tacit_client.deployment.site_folder import SiteFolder

    config = SiteFolder.open(folder).config
    print_inspection(config, inspect_data(config), Console(highlight=False, markup=False))


@site_app.command()
def log(
    folder: FolderArgument,
    follow: Annotated[bool, typer.Option("--follow", help="Go on as lines are added.")] = False,
    last: Annotated[int | None, typer.Option(help="Only so many of the newest.", min=0)] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show every request, what was answered, and how many bytes left. All of it is verified."""
    from tacit_client.deployment import journal_view
    from tacit_client.deployment.site_folder import SiteFolder

    site = SiteFolder.open(folder)
    lines = journal_view.follow if follow else journal_view.account
    for line in lines(site, last=last):
        typer.echo(line.model_dump_json() if json_ else journal_view.sentence(line))


@site_app.command()
def close(
    folder: FolderArgument,
    run: Annotated[
        str, typer.Argument(help="The run, as `tacit site budget FOLDER --json` names it.")
    ],
) -> None:
    """Give up the rest of a run that will not go on, so that its budget is free for others."""
    from tacit_client.budget import close_run_at

    typer.echo(close_run_at(folder, run))


@site_app.command()
def budget(
    folder: Annotated[Path, typer.Argument(help="The site's folder, or its ledger.")],
    json_: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    export: Annotated[
        Path | None,
        typer.Option(help="Also write the signed rows here, for whoever verifies a report."),
    ] = None,
    study: Annotated[
        Path | None, typer.Option(help="Say what the next round of this study would cost.")
    ] = None,
    epsilon_cap: Annotated[
        float | None,
        typer.Option(help="The site's cap, if not that of its policy, or of its newest charge."),
    ] = None,
    delta: Annotated[float | None, typer.Option(help="δ of that cap.")] = None,
) -> None:
    """Show what a site's data has cost so far, and what may still be asked of it."""
    from tacit_client.budget import budget_of, load, present_cap, write_export
    from tacit_client.deployment.site_folder import SiteFolder
    from tacit_common.study_file import load_study

    ledger, rows = load(folder)
    site = SiteFolder(folder)
    if site.policy_toml.is_file():  # a simulated site has none
        policy = site.read_policy()
        epsilon_cap = policy.epsilon_cap if epsilon_cap is None else epsilon_cap
        delta = policy.delta if delta is None else delta
    if export is not None:
        write_export(export, rows)
        if not any(charge.cap for charge in ledger.charges) and epsilon_cap is None:
            typer.echo(f"signed rows written to {export}; nothing private was ever released")
            return
    asked = None if study is None else load_study(study).travelling()
    found = budget_of(ledger, present_cap(ledger, epsilon_cap, delta), asked)
    if json_:
        typer.echo(found.model_dump_json(indent=2))
        return
    from rich.console import Console

    from tacit_client.budget_view import print_budget

    print_budget(found, Console(highlight=False))
    if export is not None:
        typer.echo(f"signed rows written to {export}")
