"""Writing a file whole: anew, over another, or not at all."""

from pathlib import Path

import pytest

from tacit_common.files import write_atomically


@pytest.mark.parametrize("before", [b"", b"a", b"something longer than what is new"])
def test_a_file_that_is_not_needed_makes_place_for_the_new_one(
    tmp_path: Path, before: bytes
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(before)
    write_atomically(new, b"what is", memoryview(b" new"), survive_power_loss=False, over=old)
    assert new.read_bytes() == b"what is new"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_write_that_fails_leaves_the_file_and_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, old = tmp_path / "file", tmp_path / "old"
    path.write_bytes(b"as it was")
    old.write_bytes(b"not needed")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tacit_common.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new", over=old)
    assert path.read_bytes() == b"as it was"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
