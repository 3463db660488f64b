"""Commands for whoever has data: `tacit embed`."""

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
