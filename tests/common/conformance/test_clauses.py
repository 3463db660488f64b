"""The conformance suite names the clause that broke, and no clause goes untried."""

import ast
from pathlib import Path

from tacit_common import testing
from tacit_common.testing import ConformanceError


def test_the_broken_clause_is_named() -> None:
    error = ConformanceError("the loss has shape [B]", "got [3]")
    assert isinstance(error, AssertionError)
    assert error.clause == "the loss has shape [B]"
    assert str(error) == "the loss has shape [B] (got [3])"


def test_every_clause_has_a_fault_planted_for_it() -> None:
    calls = {"_require", "_require_same", "ConformanceError"}
    clauses = {
        argument.value
        for node in ast.walk(ast.parse(Path(testing.__file__).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in calls
        for argument in node.args
        if isinstance(argument, ast.Constant)
    }
    planted = {
        node.value
        for file in Path(__file__).parent.glob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
    }
    assert len(clauses) > 50
    assert clauses <= planted
