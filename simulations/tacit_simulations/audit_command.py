"""The command `tacit audit`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tacit_common.report.claims import Audit
    from tacit_common.study import StudyFile
    from tacit_simulations.audit import AuditPlan

FOUND_A_FAULT = 1


def audit(
    study: Annotated[
        str,
        typer.Argument(metavar="RECIPE|STUDY.toml", help="A recipe's name, or a study file."),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one field, e.g. seed=7."),
    ] = None,
    claimed_epsilon: Annotated[
        float, typer.Option(help="ε that the noise is calibrated to, at the study's δ.")
    ] = 1.0,
    canaries: Annotated[
        int, typer.Option(help="Records planted by coin flips; more of them see more.")
    ] = 1000,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of a run of this study, or a new one, for audit.json."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Attack a simulated site's gradient path, and print a lower bound on ε beside the claim.

    Exits with 1 if the bound is above the claim. The site's ledger is charged.
    """
    from tacit_simulations.audit import audit as run_audit
    from tacit_simulations.audit import plan_audit
    from tacit_simulations.recipes import named_study

    resolved = named_study(study, set_)
    plan = plan_audit(resolved, claimed_epsilon=claimed_epsilon, canaries=canaries)
    folder, resolved = _folder(resolved, out)
    if not json_:
        typer.echo(_beginning(plan))
    found = run_audit(resolved, folder, plan)
    if json_:
        path = str(folder / "audit.json")
        typer.echo(json.dumps({**found.model_dump(mode="json"), "path": path}))
    else:
        typer.echo(_verdict(found, plan))
        typer.echo(f"  {folder / 'audit.json'}")
        typer.echo(f"  into the report: tacit simulate --resume {folder}")
    if found.epsilon_lower_bound > found.claimed_epsilon:
        raise typer.Exit(FOUND_A_FAULT)


def _beginning(plan: "AuditPlan") -> str:
    return (
        f"auditing '{plan.study.name}' at a claimed ε of {plan.privacy.epsilon:g}: "
        f"{plan.event.steps} steps with {plan.canaries} canaries, each in by a coin flip …"
    )


def _verdict(found: "Audit", plan: "AuditPlan") -> str:
    """The measurement in plain words, whichever way it went."""
    bound, claim = found.epsilon_lower_bound, found.claimed_epsilon
    measured = (
        f"claimed      ε ≤ {claim:g} at δ = {plan.privacy.delta:g}\n"
        f"lower bound  ε ≥ {bound:.2f} with {found.confidence:.0%} confidence\n"
        f"             {found.right_guesses} of {found.guesses} guesses right; all right would "
        f"have shown {plan.largest_bound:.2f}\n"
    )
    if bound > claim:
        return measured + (
            "The attack found out more than the claim allows: there is a fault in the gradient\n"
            "path, and nothing that it made may be released."
        )
    return measured + (
        "The attack found out no more than the claim allows. This is a measurement, never a\n"
        "guarantee: a better attack, or a fault that no canary meets, may show more."
    )


def _folder(study: "StudyFile", out: Path | None) -> tuple[Path, "StudyFile"]:
    """Where the site and its ledger are, and the study as that folder has it."""
    from tacit_common.errors import UsageError
    from tacit_simulations.simulate import STUDY, new_folder, read_folder

    if out is None or not (out / STUDY).is_file():
        folder = new_folder(study, out)
        return folder, read_folder(folder)
    there = read_folder(out)
    if there.travelling().digest() != study.travelling().digest():
        raise UsageError(
            f"'{out}' is the run of another study",
            why=f"its {STUDY} is not the study to be audited",
            fix=f"audit {out / STUDY} itself, or give another --out",
        )
    return out, there
