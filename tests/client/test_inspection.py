"""`tacit site inspect`: exact, complete, and on the operator's terminal alone."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from tacit_client.cli import site_app
from tacit_client.deployment.inspection import inspect_data
from tacit_client.deployment.site_init import Prepared
from tacit_client.deployment.stored_shapes import UNREADABLE

NewSite = Callable[..., Prepared]


def test_all_that_a_labelled_set_with_subjects_holds_is_counted(new_site: NewSite) -> None:
    found = inspect_data(new_site(subjects={"by": "column", "column": "patient"}).folder.config)
    assert found.records == 60
    assert (found.unreadable, found.duplicates) == ([], [])
    assert found.labels == Counter({str(label): 6 for label in range(10)})
    assert found.subjects is not None
    assert set(found.subjects.values()) == {3}
    assert len(found.subjects) == 20
    assert found.shapes == Counter({"uint8 [8, 8]": 60})
    assert found.lowest is not None
    assert found.highest is not None
    assert 0 <= found.lowest < found.highest <= 1


def test_records_that_are_alike_or_cannot_be_read_are_named_by_number(
    new_site: NewSite, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).random((6, 8, 8), dtype=np.float32)
    images[4] = images[1]
    images[2, 0, 0] = np.nan
    np.save(tmp_path / "floats.npy", images)
    found = inspect_data(
        new_site(data=str(tmp_path / "floats.npy"), declared_units=5).folder.config
    )
    assert (found.unreadable, found.duplicates) == ([2], [4])
    assert found.labels is None
    assert found.subjects is None


def test_sizes_of_image_files_are_read_from_their_headers(
    new_site: NewSite, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("L", (10, 12)).save(images / "grey.png")
    Image.new("RGB", (9, 9), (1, 2, 3)).save(images / "colour.png")
    (images / "broken.png").write_bytes(b"no image")
    (images / "notes.txt").write_bytes(b"none either")
    found = inspect_data(new_site(data=str(images), declared_units=2).folder.config)
    assert found.shapes == Counter({"10 x 12 L": 1, "9 x 9 RGB": 1, UNREADABLE: 1})
    assert found.unreadable == [0]


def test_the_command_says_that_nothing_is_sent(new_site: NewSite) -> None:
    folder = new_site().folder
    before = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}
    output = CliRunner().invoke(site_app, ["inspect", str(folder.path)]).output
    assert "nothing on this page is sent" in output
    assert "records" in output
    assert {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()} == before
