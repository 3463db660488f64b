"""`tacit site init`: what the operator decides, from options or asked at the terminal."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

if TYPE_CHECKING:
    from tacit_client.deployment.site_config import SiteConfig
    from tacit_client.deployment.site_init import Holdings
    from tacit_client.policy import SitePolicy
    from tacit_common.study import ColumnSubjects, FolderSubjects

Unit = Literal["record", "subject"]

_UNDECLARED = 1  # stands in the configuration until the data has been looked at


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder for the site.")],
    name: Annotated[str, typer.Option(help="The site's name: small letters, digits and hyphens.")],
    data: Annotated[
        str,
        typer.Option(
            help="The data set: .npy, .npz, .parquet, .csv, .jsonl, a folder of images or of "
            "class folders; or a name given with --plugin."
        ),
    ],
    coordinator: Annotated[Path, typer.Option(help="invitation.json from the coordinator.")],
    unit: Annotated[
        Unit | None,
        typer.Option(help="What is protected: a record, or a subject with all of its records."),
    ] = None,
    epsilon_cap: Annotated[
        float | None, typer.Option(help="Largest ε of all that is ever released of the data.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="δ of that cap.")] = None,
    declared_units: Annotated[
        int | None,
        typer.Option(help="How many units the site says it has: public, and rounded down."),
    ] = None,
    witness: Annotated[
        Path | None, typer.Option(help="witness.json from whoever countersigns the ledger.")
    ] = None,
    subjects_column: Annotated[
        str | None, typer.Option(help="Column of the table that says whose a record is.")
    ] = None,
    subjects_folder: Annotated[
        int | None,
        typer.Option(help="Level of the folder, from 1, that says whose an image is.", min=1),
    ] = None,
    lineage: Annotated[
        str | None,
        typer.Option(help="What you call the data set; its file's name if left out."),
    ] = None,
    labels: Annotated[
        bool, typer.Option(help="Whether probes may use the classes that the data has.")
    ] = True,
    class_name: Annotated[
        list[str] | None,
        typer.Option(help="Classes of the whole federation, in the order of their numbers."),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where the site trains.")
    ] = "auto",
    health: Annotated[
        str, typer.Option(help="host:port of the gRPC health service, or 'none'.")
    ] = "none",
    plugin: Annotated[
        list[str] | None,
        typer.Option(help="What a plug-in's name means here: name=module:attribute."),
    ] = None,
    allow_non_private: Annotated[
        bool,
        typer.Option(
            "--allow-non-private",
            help="Admit studies without differential privacy too: nothing bounds what they reveal.",
        ),
    ] = False,
) -> None:
    """Make a data site: keys, ledger, policy, configuration, and a card for the coordinator."""
    from tacit_client.deployment.site_folder import SiteFolder
    from tacit_client.deployment.site_init import (
        Partners,
        init_site,
        look_at_data,
        next_steps,
        require_free,
    )
    from tacit_client.embedding import parse_plugins
    from tacit_common.countersign import read_witness_card
    from tacit_common.enrolment import read_invitation

    site_folder = SiteFolder(folder)
    require_free(site_folder)
    plugins = dict(parse_plugins(plugin or []).targets)
    partners = Partners(
        invitation=read_invitation(coordinator),
        witness=None if witness is None else read_witness_card(witness),
    )
    terms = _decided(unit, epsilon_cap, delta)
    policy = _policy(terms, allow_non_private=allow_non_private)
    config = _configured(
        {
            "site": name,
            "data": data if data in plugins else str(Path(data).expanduser().absolute()),
            "lineage": lineage or Path(data).name,
            "declared_units": _UNDECLARED if declared_units is None else declared_units,
            "labels": labels,
            "class_names": class_name or None,
            "device": device,
            "health_address": None if health == "none" else health,
            "subjects": _subjects(subjects_column, subjects_folder),
            "plugins": plugins,
            "coordinator": partners.coordinator_access,
            "witness": partners.witness_access,
        }
    )
    found = look_at_data(config, terms.unit)
    declared = _declared(found, declared_units, terms.unit)
    config = config.model_copy(
        update={"declared_units": declared, "identity_channels": found.identity_channels}
    )
    typer.echo(next_steps(init_site(site_folder, config, policy, partners, found.units)))
    if policy.delta * declared >= 1:
        typer.echo(
            f"Note: δ = {policy.delta:g} is not below 1 / {declared}. At such a δ, publishing one "
            "unit as it is may count as private; lower it in policy.toml."
        )


class _Terms(NamedTuple):
    """What an operator decides, and nobody else could."""

    unit: Unit
    epsilon_cap: float
    delta: float


def _decided(unit: Unit | None, epsilon_cap: float | None, delta: float | None) -> _Terms:
    """The terms, asked for where they are missing and somebody is there to answer."""
    if unit is not None and epsilon_cap is not None and delta is not None:
        return _Terms(unit, epsilon_cap, delta)
    given = {"--unit": unit, "--epsilon-cap": epsilon_cap, "--delta": delta}
    _require_terminal([name for name, value in given.items() if value is None])
    if unit is None:
        kinds = typer.prompt("What is protected: a record, or a subject with all of its records?")
        unit = "subject" if kinds.strip().lower().startswith("s") else "record"
        typer.echo(f"The unit is the {unit}.")
    if epsilon_cap is None:
        epsilon_cap = typer.prompt("Largest ε of all that is ever released of it", type=float)
    if delta is None:
        delta = typer.prompt("δ of that cap, well below one over the number of units", type=float)
    return _Terms(unit, epsilon_cap, delta)


def _declared(found: "Holdings", declared: int | None, unit: Unit) -> int:
    """The declared number, asked for if need be. What was found is said on this terminal alone."""
    units = f" of {found.units} subjects" if unit == "subject" else ""
    typer.echo(f"The data set has {found.records} records{units}. This number never leaves.")
    if declared is not None:
        return declared
    _require_terminal(["--declared-units"], f"; {found.suggestion} would be one")
    return int(
        typer.prompt(
            f"How many {unit}s shall the site say that it has? A round number below",
            default=found.suggestion,
            type=int,
        )
    )


def _require_terminal(missing: list[str], hint: str = "") -> None:
    from tacit_common.errors import UsageError

    if not sys.stdin.isatty():
        raise UsageError(
            f"{', '.join(missing)} must be given",
            why="only the operator can decide it, and there is no terminal to ask at",
            fix=f"add it to the command{hint}",
        )


def _subjects(column: str | None, level: int | None) -> "ColumnSubjects | FolderSubjects | None":
    from tacit_common.errors import UsageError
    from tacit_common.study import ColumnSubjects, FolderSubjects

    if column is not None and level is not None:
        raise UsageError(
            "subjects cannot be found in two ways",
            why="--subjects-column is for a table, --subjects-folder for a folder of images",
            fix="give the one that fits the data",
        )
    if column is not None:
        return ColumnSubjects(by="column", column=column)
    return None if level is None else FolderSubjects(by="folder", level=level)


def _policy(terms: _Terms, *, allow_non_private: bool) -> "SitePolicy":
    from pydantic import ValidationError

    from tacit_client.policy import SitePolicy
    from tacit_common.errors import UsageError

    try:
        policy = SitePolicy.to_begin_with(
            unit=terms.unit, epsilon_cap=terms.epsilon_cap, delta=terms.delta
        )
    except ValidationError:
        raise UsageError(
            f"ε = {terms.epsilon_cap:g} at δ = {terms.delta:g} is no cap",
            why="ε has to be positive, and δ strictly between 0 and 1",
            fix="change --epsilon-cap or --delta",
        ) from None
    if not allow_non_private:
        return policy
    modes = (*policy.allow.modes, "none")
    releases = (*policy.allow.releases, "train_loss")
    allow = policy.allow.model_copy(update={"modes": modes, "releases": releases})
    return policy.model_copy(update={"allow_non_private": True, "allow": allow})


def _configured(fields: dict[str, object]) -> "SiteConfig":
    from pydantic import ValidationError

    from tacit_client.deployment.site_config import SiteConfig
    from tacit_common.errors import UsageError
    from tacit_common.toml_file import wrong_fields

    try:
        return SiteConfig.model_validate(fields)
    except ValidationError as error:
        raise UsageError(
            "this site cannot be made",
            why="\n".join(wrong_fields(error, SiteConfig)),
            fix="change the options of these names",
        ) from None
