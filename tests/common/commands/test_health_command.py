"""`tacit health`: one line, and an exit code that a probe understands."""

import pytest
import typer

from tacit_common.cli import run_command
from tacit_common.commands.health import health
from tacit_common.health import HealthServer


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(health)
    return app


def run(command: typer.Typer, *arguments: str) -> int:
    return run_command(lambda: command(list(arguments), standalone_mode=False))


def test_the_exit_code_says_what_the_service_says(
    command: typer.Typer, capsys: pytest.CaptureFixture[str]
) -> None:
    with HealthServer("127.0.0.1:0", {"live": lambda: True, "ready": lambda: False}) as server:
        address = f"127.0.0.1:{server.port}"
        assert run(command, address, "--service", "live") == 0
        assert run(command, address, "--service", "ready") == 1
        assert run(command, address) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{address} live: serving",
        f"{address} ready: not serving",
        f"{address} live and ready: not serving",
    ]


def test_a_service_that_it_does_not_have_is_not_serving(
    command: typer.Typer, capsys: pytest.CaptureFixture[str]
) -> None:
    with HealthServer("127.0.0.1:0", {}) as server:
        assert run(command, f"127.0.0.1:{server.port}", "--service", "live") == 1
    assert capsys.readouterr().out.endswith("live: unknown\n")


def test_an_address_where_nobody_is_gives_exit_code_1_and_three_lines(
    command: typer.Typer, capsys: pytest.CaptureFixture[str]
) -> None:
    with HealthServer("127.0.0.1:0", {}) as server:
        address = f"127.0.0.1:{server.port}"
    assert run(command, address) == 1
    what, why, fix = capsys.readouterr().err.splitlines()
    assert what == f"error: {address} answers no health check"
    assert "UNAVAILABLE" in why
    assert fix.startswith("  fix: start the service")
