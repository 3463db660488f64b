"""The command `tacit plan`."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def plan(
    records: Annotated[
        int,
        typer.Option(
            help="Declared units of one site: records, or subjects with --unit subject. A public "
            "number below the count, never the count."
        ),
    ],
    epsilon: Annotated[float, typer.Option(help="Budget ε of the whole run at each site.")],
    rounds: Annotated[
        list[int], typer.Option(help="Rounds. Give it again to compare other numbers.")
    ],
    delta: Annotated[
        float | None, typer.Option(help="δ at which ε is stated; one is proposed if left out.")
    ] = None,
    local_steps: Annotated[int, typer.Option(help="Noisy steps of a site in a round.")] = 1,
    sampling_rate: Annotated[
        list[float] | None,
        typer.Option(help="Poisson rate q. Give it again to compare; some are chosen if none is."),
    ] = None,
    batch: Annotated[
        list[float] | None,
        typer.Option(help="Expected batch q·N, instead of the rate. Give it again to compare."),
    ] = None,
    sites: Annotated[int, typer.Option(help="Equal sites whose updates are averaged.")] = 1,
    unit: Annotated[
        Literal["record", "subject"], typer.Option(help="What one unit of privacy is.")
    ] = "record",
    records_per_subject: Annotated[
        int | None, typer.Option(help="Contribution cap, with --unit subject.")
    ] = None,
    probe_epsilon: Annotated[
        list[float] | None,
        typer.Option(help="ε of one probe release; once for each (before and after are two)."),
    ] = None,
    parameters: Annotated[
        int | None, typer.Option(help="Trained parameters; needed to judge signal-to-noise.")
    ] = None,
    clip: Annotated[
        float | None, typer.Option(help="Clip norm C; scales the noise that --json states.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the alternatives: a .svg or .png file.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Say what a privacy budget buys, before a study is written."""
    # What counts is imported here, so that `tacit --help` answers at once.
    from tacit_common.privacy import planner
    from tacit_common.privacy.planner.plot import check_plot_path, write_plot

    request = planner.PlanRequest(
        records=records,
        epsilon=epsilon,
        rounds=tuple(rounds),
        delta=delta,
        local_steps=local_steps,
        sampling_rates=tuple(sampling_rate or ()),
        batches=tuple(batch or ()),
        sites=sites,
        unit=unit,
        records_per_subject=records_per_subject,
        probe_epsilons=tuple(probe_epsilon or ()),
        parameters=parameters,
        l2_clip_norm=clip,
    )
    if plot is not None:
        check_plot_path(plot)
    figures = planner.plan(request)
    if plot is not None:
        write_plot(figures, plot)
    if json_:
        typer.echo(figures.model_dump_json(indent=2))
        return
    from rich.console import Console

    from tacit_common.privacy.planner.tables import print_plan

    console = Console(highlight=False)
    print_plan(figures, console)
    if plot is not None:
        console.print(f"plot     {plot}", soft_wrap=True)
