"""Commands for whoever has data: `tacit embed` and `tacit site budget`."""

from pathlib import Path
from typing import Annotated

import typer


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


@site_app.callback()
def site() -> None:
    """Commands of a data site."""


@site_app.command()
def close(
    folder: Annotated[Path, typer.Argument(help="The site's folder.")],
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
        float | None, typer.Option(help="The site's cap, if not that of its newest charge.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="δ of that cap.")] = None,
) -> None:
    """Show what a site's data has cost so far, and what may still be asked of it."""
    from tacit_client.budget import budget_of, load, present_cap, write_export
    from tacit_common.study_file import load_study

    ledger, rows = load(folder)
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
