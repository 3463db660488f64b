"""What each package offers, and what importing it must not do.

A public name is a promise. When one is added or taken away on purpose, write the list anew:

    python tests/test_public_names.py
"""

import ast
import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests/golden/public_names.json"
SOURCES = {
    name: ROOT / name.removeprefix("tacit_") / name
    for name in ("tacit_common", "tacit_client", "tacit_server", "tacit_simulations")
}
UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "shelve", "joblib", "marshal"}


def packages() -> list[str]:
    """Every package of the four, themselves included."""
    found = list(SOURCES)
    for name, source in SOURCES.items():
        modules = pkgutil.walk_packages([str(source)], prefix=f"{name}.")
        found += [module.name for module in modules if module.ispkg]
    return sorted(found)


def public_names() -> dict[str, list[str]]:
    return {name: list(importlib.import_module(name).__all__) for name in packages()}


def files() -> list[Path]:
    return sorted(path for source in SOURCES.values() for path in source.rglob("*.py"))


@pytest.mark.parametrize("package", packages())
def test_public_names_are_sorted_and_exist(package: str) -> None:
    module = importlib.import_module(package)
    names = module.__all__
    # As ruff sorts them: constants, then classes, then the rest.
    assert names == sorted(names, key=_rank)
    assert len(set(names)) == len(names)
    assert [name for name in names if not hasattr(module, name)] == []


def _rank(name: str) -> tuple[int, str]:
    if name.isupper():
        return 0, name
    return (1, name) if name[0].isupper() else (2, name)


def test_public_names_are_those_that_were_promised() -> None:
    promised = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert public_names() == promised, "if this is meant: python tests/test_public_names.py"


@pytest.mark.parametrize("package", packages())
def test_what_a_package_defines_itself_is_in_its_list(package: str) -> None:
    module = importlib.import_module(package)
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    defined = {
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    }
    assert defined <= set(module.__all__)


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after a statement."""
    program = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(result.stdout.split())


@pytest.mark.parametrize("package", list(SOURCES))
def test_importing_a_package_loads_nothing_heavy(package: str) -> None:
    loaded = modules_after(f"import {package}")
    assert package in loaded
    assert not loaded & {"torch", "flwr", "opacus", "dp_accounting", "ray", "numpy", "pydantic"}


def test_the_command_line_is_ready_without_torch() -> None:
    loaded = modules_after("import tacit_simulations.cli")
    assert "typer" in loaded
    assert not loaded & {"torch", "flwr", "opacus", "dp_accounting", "ray"}


def imports_of(tree: ast.AST) -> set[str]:
    """Top-level names of all modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names


def loads_code(tree: ast.AST) -> list[str]:
    """Calls that unpickle: torch.load and torch.save, and NumPy asked to allow it."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if ast.unparse(node.func) in ("torch.load", "torch.save"):
            found.append(ast.unparse(node.func))
        allows = {k.arg: k.value for k in node.keywords}.get("allow_pickle")
        if allows is not None and ast.unparse(allows) != "False":
            found.append("allow_pickle")
    return found


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_pickled(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not imports_of(tree) & UNPICKLERS
    assert loads_code(tree) == []


@pytest.mark.parametrize(
    "source", ["import pickle", "def f():\n    from pickle import loads", "import joblib.memory"]
)
def test_an_import_of_pickle_would_be_noticed(source: str) -> None:
    assert imports_of(ast.parse(source)) & UNPICKLERS


@pytest.mark.parametrize("source", ["torch.load(path)", "np.load(path, allow_pickle=True)"])
def test_a_call_that_unpickles_would_be_noticed(source: str) -> None:
    assert loads_code(ast.parse(source))


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(public_names(), indent=2) + "\n", encoding="utf-8")
