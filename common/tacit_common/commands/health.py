"""The command `tacit health ADDRESS`."""

from typing import Annotated, Literal

import typer


def health(
    address: Annotated[str, typer.Argument(help="host:port of a site's or a server's health.")],
    service: Annotated[
        Literal["live", "ready"] | None,
        typer.Option(help="live: leave it running; ready: it can work now. Both, if left out."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=600.0, help="Seconds to wait for an answer.")
    ] = 5.0,
) -> None:
    """Ask a service how it is: exit code 0 if it is serving, 1 if it is not."""
    from tacit_common.health import HealthStatus, check_health

    status = check_health(address, service or "", timeout_s=timeout)
    typer.echo(f"{address} {service or 'live and ready'}: {status.value}")
    if status is not HealthStatus.SERVING:
        raise typer.Exit(1)
