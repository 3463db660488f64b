"""The image: pinned, without privileges, and with nothing in it that was not meant to be."""

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tacit_common.service_files import ENVIRONMENT

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy/Dockerfile"
HADOLINT = shutil.which("hadolint")


def instructions() -> list[tuple[str, str]]:
    """Every instruction of the Dockerfile and its arguments, on one line each."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    pairs = (line.split(maxsplit=1) for line in whole.splitlines() if line.strip())
    return [(word, rest) for word, rest in pairs]


def arguments(instruction: str) -> list[str]:
    return [rest for word, rest in instructions() if word == instruction]


def last_stage() -> list[tuple[str, str]]:
    found = instructions()
    start = max(index for index, (word, _) in enumerate(found) if word == "FROM")
    return found[start:]


def test_every_base_is_pinned_and_slim() -> None:
    bases = [rest.split()[0] for rest in arguments("FROM")]
    assert len(bases) == 2
    assert set(bases) == {bases[0]}
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", bases[0])


def test_it_does_not_run_as_root() -> None:
    users = [rest for word, rest in last_stage() if word == "USER"]
    assert users
    uid, gid = users[-1].split(":")
    assert int(uid) > 0
    assert int(gid) > 0
    after = last_stage()[last_stage().index(("USER", users[-1])) :]
    assert {word for word, _ in after} <= {"USER", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


def test_nothing_is_fetched_but_packages() -> None:
    text = DOCKERFILE.read_text()
    assert not arguments("ADD")
    assert "://" not in text
    assert not re.search(r"\b(curl|wget|git clone|apt-get)\b", text)


def test_every_package_is_constrained() -> None:
    installs = [
        part for run in arguments("RUN") for part in run.split("&&") if "pip install" in part
    ]
    assert len(installs) == 3
    for install in installs:
        assert "--constraint constraints.txt" in install or "torch==2.13.0" in install
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().split()


def test_every_source_that_is_copied_exists_and_passes_the_ignore_file() -> None:
    copied = [rest.split()[:-1] for rest in arguments("COPY") if not rest.startswith("--from")]
    sources = {source for sources in copied for source in sources}
    assert {"client", "common", "server", "simulations", "pyproject.toml"} <= sources
    for source in sources:
        assert (ROOT / source).exists()
        assert not ignored(source)


def ignored(path: str) -> bool:
    """As Docker reads .dockerignore: the last rule that fits a path, or one above it, counts."""
    verdict = False
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = rule.removeprefix("!").removeprefix("**/")
        names = [str(above) for above in [Path(path), *Path(path).parents][:-1]]
        anywhere = rule.removeprefix("!").startswith("**/")
        fits = any(
            fnmatch.fnmatchcase(Path(name).name if anywhere else name.split("/")[0], pattern)
            for name in names
        )
        if rule and not rule.startswith("#") and fits:
            verdict = not rule.startswith("!")
    return verdict


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        "runs/digits/report.json",
        "hub/coordinator.key",
        "site/ledger.db",
        "coordinator.key",
        "invitation.json",
        "common/tacit_common/__pycache__/cli.pyc",
    ],
)
def test_keys_runs_and_history_never_reach_the_builder(path: str) -> None:
    assert ignored(path)


def test_no_secret_is_a_part_of_the_image() -> None:
    names = [*arguments("ARG"), *arguments("ENV"), *arguments("COPY")]
    assert not re.search(r"(?i)secret|password|token|\.key\b", " ".join(names))


def test_nothing_in_the_image_calls_home() -> None:
    set_here = dict(pair.split("=", 1) for rest in arguments("ENV") for pair in shlex.split(rest))
    assert {name: set_here.get(name) for name in ENVIRONMENT} == ENVIRONMENT


def test_the_image_is_the_command() -> None:
    (entry,) = arguments("ENTRYPOINT")
    assert json.loads(entry) == ["tacit"]
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert 'tacit = "tacit_simulations.cli:main"' in pyproject
    (check,) = arguments("HEALTHCHECK")
    assert "tacit health" in check


def test_bytecode_is_compiled_before_nothing_can_be_written() -> None:
    assert any("compileall" in run for run in arguments("RUN"))


def variant_check() -> str:
    (script,) = [run for run in arguments("RUN") if run.startswith("case")]
    return script


@pytest.mark.parametrize(
    ("variant", "torch_has", "builds"),
    [
        ("cpu", "None", True),
        ("cuda", "CUDA", True),
        ("cpu", "CUDA", False),
        ("cuda", "None", False),
        ("tpu", "None", False),
    ],
)
def test_an_image_of_another_variant_than_its_name_is_not_built(
    variant: str, torch_has: str, builds: bool, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {torch_has}\n")
    python.chmod(0o755)
    done = subprocess.run(
        ["/bin/bash", "-o", "pipefail", "-c", variant_check()],
        env={"VARIANT": variant, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) is builds
    assert builds or variant in done.stderr


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_hadolint_finds_no_fault() -> None:
    done = subprocess.run(
        ["hadolint", str(DOCKERFILE)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
