"""The boundary between commands and the terminal: one error, three lines, an exit code."""

import os
import signal
import sys
import traceback
from collections.abc import Callable

import click

from tacit_common.errors import TacitError

DEBUG_VARIABLE = "TACIT_DEBUG"
INTERRUPTED = 128 + signal.SIGINT


def run_command(command: Callable[[], object]) -> int:
    """Run a command line and return its exit code; errors go to stderr.

    0 is success, 1 a failure, 2 a request that has to change, 130 an interruption.
    With `--debug` a traceback stands before the error.
    """
    try:
        code = command()
    except TacitError as error:
        _print_traceback_if_asked()
        print(
            f"error: {error.what}\n  why: {_indented(error.why)}\n  fix: {error.fix}",
            file=sys.stderr,
        )
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:  # an unknown option, a missing argument
        error.show()
        return error.exit_code
    except Exception as error:
        _print_traceback_if_asked()
        print(
            f"error: Tacit failed unexpectedly ({type(error).__name__})\n"
            "  why: this is a fault in Tacit, not in your input\n"
            "  fix: run again with --debug and report what it prints",
            file=sys.stderr,
        )
        return 1
    return code if isinstance(code, int) else 0  # typer returns the code of an early exit


def printable(text: str) -> str:
    """One line of text from outside, without anything that a terminal takes for a command."""
    return "".join(character if character.isprintable() else "·" for character in text)


def ask_for_tracebacks() -> None:
    """Make later errors print their traceback."""
    os.environ[DEBUG_VARIABLE] = "1"


def _print_traceback_if_asked() -> None:
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exc()


def _indented(text: str) -> str:
    return text.replace("\n", "\n       ")
