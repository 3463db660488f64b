"""The `tacit` command: every group of commands, and the simulation's own.

Heavy imports stand inside the commands, so that `tacit --help` answers at once.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tacit_client.cli import embed, site_app
from tacit_common import __version__
from tacit_common.cli import ask_for_tracebacks, run_command
from tacit_common.commands import health, plan, report_app
from tacit_server.cli import server_app
from tacit_server.witness.cli import witness_app
from tacit_simulations.audit_command import audit

if TYPE_CHECKING:
    from tacit_common.study import StudyFile
    from tacit_simulations.display import Display
    from tacit_simulations.simulate import SimulationResult

app = typer.Typer(
    name="tacit",
    help="Federated, differentially private self-supervised pretraining.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
study_app = typer.Typer(help="Look at study files.", no_args_is_help=True)
app.add_typer(study_app, name="study")
app.command()(plan)
app.command()(audit)
app.command()(embed)
app.add_typer(site_app, name="site")
app.add_typer(server_app, name="server")
app.add_typer(witness_app, name="witness")
app.command()(health)
app.add_typer(report_app, name="report")

StudyArgument = Annotated[
    str, typer.Argument(metavar="[RECIPE|STUDY.toml]", help="A recipe's name, or a study file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one field, e.g. privacy.epsilon=4."),
]


def main() -> None:
    """Entry point of the `tacit` command; `--debug` may stand anywhere."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if len(arguments) < len(sys.argv) - 1:
        ask_for_tracebacks()
    sys.exit(run_command(lambda: app(arguments, standalone_mode=False)))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tacit {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options that every command takes."""


@app.command()
def simulate(
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE|STUDY.toml]", help="A recipe's name, or a study file; else digits."
        ),
    ] = None,
    set_: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.")] = None,
    engine: Annotated[
        Literal["in-process", "ray"], typer.Option(help="Where the sites run.")
    ] = "in-process",
    ray_address: Annotated[
        str | None, typer.Option(help="A running Ray cluster (with --engine ray).")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Processes that the sites are shared out to."),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="One line an event.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Pretrain an encoder over simulated sites, and report what it cost."""
    from tacit_common.errors import UsageError
    from tacit_simulations.engine import RayOptions
    from tacit_simulations.recipes import named_study
    from tacit_simulations.simulate import check, new_folder, read_folder, require_affordable
    from tacit_simulations.simulate import simulate as run_simulation

    if ray_address is not None and engine != "ray":
        raise UsageError(
            "--ray-address has no meaning here",
            why=f"the engine is '{engine}'",
            fix="add --engine ray",
        )
    if workers is not None and engine == "ray":
        raise UsageError(
            "--workers has no meaning here",
            why="Ray's own workers do the work",
            fix="leave out --engine ray, or --workers",
        )
    if resume is not None:
        if study or set_ or out is not None:
            raise UsageError(
                "a resumed run cannot change",
                why="a study, --set and --out belong to a new run",
                fix="leave them out, or start a new run",
            )
        resolved, folder = read_folder(resume), resume
    else:
        resolved = named_study(study or "digits", set_)
        check(resolved)  # before a folder is made
        require_affordable(resolved)
        folder = new_folder(resolved, out)
        resolved = read_folder(folder)
    ray = RayOptions(address=ray_address) if engine == "ray" else None
    try:
        with _display(resolved, plain=plain, json_=json_) as display:
            result = run_simulation(
                resolved, folder, ray=ray, workers=workers, watchers=[display.watch]
            )
    except KeyboardInterrupt:
        typer.echo(f"interrupted; go on with: tacit simulate --resume {folder}", err=True)
        raise
    _print_result(result, folder, json_=json_)


def _display(study: "StudyFile", *, plain: bool, json_: bool) -> "Display":
    from tacit_simulations import display

    if json_:
        return display.JsonDisplay()
    if plain or not sys.stdout.isatty():
        return display.PlainDisplay()
    from rich.console import Console

    return display.LiveDisplay(study, Console())


def _print_result(result: "SimulationResult", folder: Path, *, json_: bool) -> None:
    from tacit_simulations.summary import print_summary

    if json_:
        typer.echo(json.dumps({"event": "report", "path": str(result.report_json)}))
    else:
        print_summary(result, folder)


@app.command()
def recipes() -> None:
    """List the studies that come with Tacit."""
    from tacit_simulations.recipes import recipe_names, recipe_summary

    for name in recipe_names():
        typer.echo(f"{name:<16} {recipe_summary(name)}")


@study_app.command("show")
def show_study(study: StudyArgument = "digits", set_: SetOption = None) -> None:
    """Print a study with every field resolved."""
    from tacit_simulations.recipes import named_study

    typer.echo(named_study(study, set_).to_toml(), nl=False)


@study_app.command("check")
def check_study(study: StudyArgument = "digits", set_: SetOption = None) -> None:
    """Say whether a study can run, and what it would cost."""
    from tacit_common.architecture import encoder_sha256
    from tacit_common.privacy.plan import calibrate
    from tacit_simulations.recipes import named_study
    from tacit_simulations.rehearsal import in_words
    from tacit_simulations.simulate import check, require_affordable

    resolved = named_study(study, set_)
    plan = check(resolved)
    require_affordable(resolved)
    holdings = in_words(resolved, plan)
    schedule = calibrate(resolved.travelling())
    if schedule.noise_multiplier is None:
        typer.echo(f"{resolved.name}: sound; no differential privacy")
    else:
        typer.echo(
            f"{resolved.name}: sound; ε {schedule.planned_epsilon:.3f} of "
            f"{schedule.target_epsilon:g} at δ {schedule.delta:g} for each site, "
            f"noise multiplier {schedule.noise_multiplier:.3f}"
        )
    typer.echo(holdings)
    typer.echo(f"encoder {encoder_sha256(resolved.encoder)}, as a site's policy may list it")


@study_app.command("schema")
def schema(
    json_: Annotated[bool, typer.Option("--json", help="As a JSON Schema.")] = False,
) -> None:
    """Describe every field of a study."""
    from tacit_common.study import StudyFile
    from tacit_common.study_reference import study_reference

    if json_:
        typer.echo(json.dumps(StudyFile.model_json_schema(), indent=2))
    else:
        typer.echo(study_reference(), nl=False)
