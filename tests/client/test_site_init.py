"""`tacit site init`: whole or not at all, never over a key or a ledger, nothing decided for you."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from typer.testing import CliRunner, Result

from tacit_client.budget import load
from tacit_client.cli import site_app
from tacit_client.deployment import site_init
from tacit_client.deployment.site_folder import SiteFolder
from tacit_client.deployment.site_init import Holdings, Prepared
from tacit_common.cli import run_command
from tacit_common.countersign import WitnessCard
from tacit_common.enrolment import Invitation, read_site_card
from tacit_common.errors import LedgerError, UsageError
from tacit_common.identity import Identity

NewSite = Callable[..., Prepared]
Init = Callable[..., Result]


@pytest.fixture
def init(tmp_path: Path, data_file: Path, invitation: Invitation) -> Init:
    """`init("--delta=1e-6", without="--unit")`: the command, with and without some options."""
    invitation.write(tmp_path / "invitation.json")
    options = {
        "--name": "clinic",
        "--data": str(data_file),
        "--unit": "record",
        "--epsilon-cap": "8",
        "--delta": "1e-5",
        "--declared-units": "50",
        "--coordinator": str(tmp_path / "invitation.json"),
    }

    def run(*more: str, without: str | None = None, **changed: str) -> Result:
        given = options | {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
        arguments = [
            part for name, value in given.items() if name != without for part in (name, value)
        ]
        return CliRunner().invoke(site_app, ["init", str(tmp_path / "site"), *arguments, *more])

    return run


def refusal(result: Result) -> str:
    """The error that a command ended with."""
    assert isinstance(result.exception, UsageError), result.output
    return str(result.exception)


# --- what is made ------------------------------------------------------------------------


def test_init_makes_a_site_that_can_be_opened(init: Init, tmp_path: Path) -> None:
    result = init()
    assert result.exit_code == 0, result.output
    folder = SiteFolder.open(tmp_path / "site")
    policy = folder.read_policy()
    assert (policy.unit, policy.epsilon_cap, policy.delta) == ("record", 8.0, 1e-5)
    assert policy.allow.modes == ("local",)
    assert policy.consent.approval == "each study"
    assert load(folder.path)[0].genesis.site == "clinic"
    assert {path.name for path in folder.service.iterdir()} == {
        "tacit-site.service",
        "compose.yaml",
    }


def test_the_card_shows_the_keys_that_are_in_the_folder(init: Init, tmp_path: Path) -> None:
    init()
    folder = SiteFolder.open(tmp_path / "site")
    card = read_site_card(folder.card("clinic"))
    assert card.public_key == folder.read_identity().public_key
    shown = load_ssh_public_key(card.node_key.encode())
    assert shown == folder.read_node_key().public_key()
    assert card.witness_certificate == folder.witness_certificate.read_text(encoding="ascii")


def test_everything_in_the_folder_is_its_owners_alone(init: Init, tmp_path: Path) -> None:
    init()
    open_to_others = [
        path for path in (tmp_path / "site").rglob("*") if path.stat().st_mode & 0o077
    ]
    assert open_to_others == []
    assert (tmp_path / "site").stat().st_mode & 0o777 == 0o700


def test_both_fingerprints_and_the_next_commands_are_printed(
    init: Init, tmp_path: Path, invitation: Invitation
) -> None:
    output = init().output
    folder = SiteFolder(tmp_path / "site")
    assert invitation.fingerprint in output
    assert read_site_card(folder.card("clinic")).fingerprint in output
    for command in ("tacit server enroll", "tacit site doctor", "tacit site run"):
        assert command in output


def test_a_witness_is_pinned_by_its_card(
    init: Init, tmp_path: Path, invitation: Invitation
) -> None:
    card = WitnessCard(
        witness="notary",
        address="notary.example:9444",
        public_key=Identity.create().public_key,
        ca_certificate=invitation.ca_certificate,
    )
    card.write(tmp_path / "witness.json")
    output = init(witness=str(tmp_path / "witness.json")).output
    folder = SiteFolder.open(tmp_path / "site")
    assert folder.config.witness is not None
    assert folder.config.witness.public_key == card.public_key
    assert folder.witness_ca.read_text(encoding="ascii") == card.ca_certificate
    assert "tacit witness admit" in output


def test_studies_without_privacy_are_allowed_only_where_that_is_said(
    init: Init, tmp_path: Path
) -> None:
    init("--allow-non-private")
    policy = SiteFolder(tmp_path / "site").read_policy()
    assert policy.allow_non_private
    assert policy.allow.modes == ("local", "none")


def test_subjects_are_counted_where_they_are_the_unit(init: Init) -> None:
    subjects = ("--subjects-column", "patient")
    assert "more than there are" in refusal(init(*subjects, unit="subject"))
    assert init(*subjects, unit="subject", declared_units="20").exit_code == 0


def test_images_with_channels_of_their_own_are_known_in_these(init: Init, tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((60, 5, 8, 8), dtype=np.float32)
    np.save(tmp_path / "bands.npy", images)
    assert init(data=str(tmp_path / "bands.npy")).exit_code == 0
    assert SiteFolder(tmp_path / "site").config.identity_channels == 5


# --- what the operator decides -----------------------------------------------------------


@pytest.mark.parametrize("option", ["--unit", "--epsilon-cap", "--delta", "--declared-units"])
def test_nothing_that_bears_on_privacy_has_a_default(
    init: Init, tmp_path: Path, option: str
) -> None:
    assert f"{option} must be given" in refusal(init(without=option))
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("terms", [{"epsilon_cap": "0"}, {"delta": "1"}, {"epsilon_cap": "nan"}])
def test_a_cap_that_is_none_is_refused(init: Init, tmp_path: Path, terms: dict[str, str]) -> None:
    assert "is no cap" in refusal(init(**terms))
    assert not (tmp_path / "site").exists()


def test_more_units_than_there_are_cannot_be_declared(init: Init, tmp_path: Path) -> None:
    said = refusal(init(declared_units="61"))
    assert "more than there are" in said
    assert "60" not in said  # what is there stays on the operator's terminal
    assert not (tmp_path / "site").exists()


def test_a_subject_as_unit_needs_to_know_whose_a_record_is(init: Init) -> None:
    assert "nothing says whose" in refusal(init(unit="subject", declared_units="20"))


def test_a_delta_that_protects_nobody_is_remarked(init: Init) -> None:
    assert "not below 1 / 50" in init(delta="0.1").output


@pytest.mark.parametrize(
    ("units", "suggestion"),
    [(1, 1), (7, 6), (10, 5), (14, 10), (99, 95), (437, 400), (1999, 1500), (600, 550)],
)
def test_a_suggested_figure_is_below_the_true_one(units: int, suggestion: int) -> None:
    assert Holdings(3, units, units).suggestion == suggestion


# --- what is refused ---------------------------------------------------------------------


def test_a_site_is_never_made_over_another(init: Init, tmp_path: Path) -> None:
    init()
    before = {path: path.read_bytes() for path in (tmp_path / "site").iterdir() if path.is_file()}
    assert "is taken" in refusal(init(epsilon_cap="100"))
    assert {path: path.read_bytes() for path in before} == before


def test_a_folder_that_holds_something_else_is_refused(init: Init, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "thesis.tex").write_text("", encoding="utf-8")
    assert "not empty" in refusal(init())


def test_missing_data_leaves_nothing_behind(init: Init, tmp_path: Path) -> None:
    assert "no such file" in refusal(init(data=str(tmp_path / "none.npz")))
    assert not (tmp_path / "site").exists()


def test_an_empty_folder_of_data_is_an_error(init: Init, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert "holds no images" in refusal(init(data=str(tmp_path / "images")))


def test_a_file_that_is_no_invitation_is_refused(init: Init, data_file: Path) -> None:
    assert "not an invitation" in refusal(init(coordinator=str(data_file)))


def test_a_wrong_name_is_refused_by_its_field(init: Init) -> None:
    assert "'site'" in refusal(init(name="Clinic North"))


def test_a_place_that_cannot_be_written_is_an_error(init: Init, tmp_path: Path) -> None:
    (tmp_path / "site").write_text("", encoding="utf-8")
    assert "cannot be made" in refusal(init())


# --- interruptions -----------------------------------------------------------------------

STEPS = ["open_ledger", "_make_card", "service_files", "write_policy", "write_toml_file"]


@pytest.mark.parametrize("step", STEPS)
def test_an_interrupted_init_is_taken_up_with_the_keys_that_it_made(
    new_site: NewSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with monkeypatch.context() as patch:

        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(site_init, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            new_site()
    key = (tmp_path / "clinic" / "identity.key").read_bytes()
    with pytest.raises(UsageError, match="not a site's folder"):
        SiteFolder.open(tmp_path / "clinic")
    prepared = new_site()
    assert SiteFolder.open(prepared.folder.path).identity_key.read_bytes() == key
    prepared.card.require_genuine()


def test_an_init_that_is_taken_up_as_another_site_does_not_take_its_ledger(
    new_site: NewSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_site("clinic").folder.site_toml.unlink()
    (tmp_path / "clinic").rename(tmp_path / "practice")
    with pytest.raises(LedgerError, match="names another site"):
        new_site("practice")


def test_the_command_ends_with_what_why_and_fix(
    init: Init, capsys: pytest.CaptureFixture[str]
) -> None:
    error = init(without="--unit").exception
    assert error is not None

    def fail() -> None:
        raise error

    assert run_command(fail) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --unit must be given\n  why: ")
    assert "\n  fix: " in said
