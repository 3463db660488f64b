"""`tacit report`: draws a report anew, and says in words what of it holds and what does not."""

import json
from pathlib import Path

import pytest
from tests.common.report.verify.case import case
from tests.common.report.verify.tampering import changed, less, resigned
from typer.testing import CliRunner

from tacit_common.commands.report import report_app
from tacit_common.errors import TacitError, UsageError
from tacit_common.identity import Identity
from tacit_common.report.signing import fingerprint
from tacit_common.report.verify.checks import NOT_CHECKED


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, list[Path]]:
    """The report in a run's folder, and the ledgers."""
    true = case()
    (tmp_path / "report.json").write_text(true.signed.canonical_json())
    exports = []
    for export, site in zip(true.exports, true.signed.report.sites, strict=True):
        exports.append(tmp_path / f"{site.name}.json")
        exports[-1].write_text(export.model_dump_json())
    return tmp_path, exports


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(report_app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_the_command_says_what_holds_and_what_was_not_checked(
    files: tuple[Path, list[Path]],
) -> None:
    folder, exports = files
    key = case().coordinator.public_key
    code, output = run("verify", folder / "report.json", "--ledger", exports[0])
    assert code == 0
    assert "✗" not in output
    assert "Everything that was checked holds." in output
    assert "not checked against a ledger: site-1, site-2" in output
    assert "does not show who signed" in output
    assert fingerprint(key) in output
    assert NOT_CHECKED in output
    everything = [option for export in exports for option in ("--ledger", export)]
    code, output = run("verify", folder, "--key", key, *everything)
    assert code == 0
    assert "not checked against a ledger" not in output
    assert "does not show who signed" not in output


def test_the_command_names_the_field_that_fails_and_exits_with_1(
    files: tuple[Path, list[Path]],
) -> None:
    folder, exports = files
    report = folder / "report.json"
    tampered = changed(case().document(), "privacy.curve[2].epsilon", less)
    report.write_text(json.dumps(resigned(tampered, Identity.create())))
    code, output = run("verify", report, "--ledger", exports[0])
    assert code == 1
    assert "privacy.curve[2].epsilon: it says" in output
    assert "✗" in output
    assert "1 field differs" in output
    code, output = run("verify", report, "--json")
    assert code == 1
    document = json.loads(output)
    assert document["holds"] is False
    (failed,) = [check for check in document["checks"] if not check["holds"]]
    assert [f["path"] for f in failed["findings"]] == ["privacy.curve[2].epsilon"]


def test_a_report_that_contradicts_itself_fails_in_the_command_too(
    files: tuple[Path, list[Path]],
) -> None:
    folder, _ = files
    tampered = changed(case().document(), "privacy.epsilon_spent", less)
    (folder / "report.json").write_text(json.dumps(tampered))
    code, output = run("verify", folder)
    assert code == 1
    assert "epsilon_spent is not" in output


def test_a_key_or_a_file_that_is_none_is_a_usage_error(files: tuple[Path, list[Path]]) -> None:
    folder, exports = files
    for arguments in (
        ("verify", folder, "--key", "abc"),
        ("verify", exports[0]),
        ("verify", folder / "missing.json"),
        ("verify", folder, "--ledger", folder / "report.json"),
    ):
        result = CliRunner().invoke(report_app, [str(argument) for argument in arguments])
        assert result.exit_code != 0
        assert isinstance(result.exception, TacitError), result.exception


def test_a_changed_report_is_not_drawn(files: tuple[Path, list[Path]]) -> None:
    """A page says nothing of signatures that a reader would check: so there is no page."""
    folder, _ = files
    path = folder / "report.json"
    path.write_text(path.read_text().replace('"epsilon_spent":', '"epsilon_spent": '))
    assert run(folder)[0] == 0  # the same document, other bytes
    document = json.loads(path.read_text())
    document["report"]["software"]["python"] = "2.7"
    path.write_text(json.dumps(document))
    for arguments in ((folder,), (path, "--format", "pdf")):
        result = CliRunner().invoke(report_app, [str(argument) for argument in arguments])
        assert isinstance(result.exception, UsageError)
        assert "changed since it was signed" in str(result.exception)


def test_a_run_that_is_not_finished_has_no_report(tmp_path: Path) -> None:
    for command in (["verify"], []):
        result = CliRunner().invoke(report_app, [*command, str(tmp_path)])
        assert isinstance(result.exception, UsageError)
        assert "tacit simulate --resume" in result.exception.fix


@pytest.mark.parametrize("given_as", ["folder", "file"])
def test_a_run_s_report_is_drawn_anew_without_naming_a_command(
    files: tuple[Path, list[Path]], given_as: str
) -> None:
    folder, _ = files
    where = folder if given_as == "folder" else folder / "report.json"
    code, output = run(where)
    assert code == 0
    assert Path(output.strip()) == folder / "report.html"
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    code, output = run("--format", "json", where)
    assert code == 0
    assert output.strip() == case().signed.canonical_json()
    code, _ = run(where, "--format", "pdf", "--out", folder / "printed.pdf")
    assert code == 0
    assert (folder / "printed.pdf").read_bytes().startswith(b"%PDF")


def test_both_commands_are_in_the_help() -> None:
    code, output = run("--help")
    assert code == 0
    assert "verify" in output
    assert "tacit report RUN" in output
