"""The hash of the installed code changes with the code, and with nothing else."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HASH = "from tacit_common.sources import sources_sha256; print(sources_sha256())"


def hash_of(folder: Path) -> str:
    places = [str(folder / name) for name in ("common", "client", "server", "simulations")]
    found = subprocess.run(
        [sys.executable, "-c", HASH],
        env={"PYTHONPATH": ":".join(places), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.strip()


def test_equal_code_has_one_hash_wherever_it_lies_and_one_byte_changes_it(tmp_path: Path) -> None:
    for name in ("common", "client", "server", "simulations"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pyc"))
    before = hash_of(tmp_path)
    assert before == hash_of(ROOT)
    with (tmp_path / "client/tacit_client/ledger.py").open("a") as file:
        file.write("#")
    assert hash_of(tmp_path) != before
