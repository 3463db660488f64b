"""A folder of images, or a folder of class folders."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from tacit_client.data.pixels import decode_image, require_file_channels
from tacit_client.data.records import Records, unfit

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
)
SPLIT_NAMES = frozenset({"train", "test", "val", "valid", "validation"})


def open_folder(
    path: Path, *, image_size: int, channels: int, subject_level: int | None = None
) -> Records:
    """Images directly in `path`, sorted by name; or those of its class folders, by class first.

    Hidden files and files of other kinds are passed over; class folders are searched at
    any depth. With `subject_level`, the folder so many levels below `path` names a file's
    subject; at level 1 the folders are subjects instead of classes.

    Raises:
        DataError: there are no images, it is not clear which classes they have, or some do
            not lie as deep as their subject's folder.
    """
    require_file_channels(channels)
    files = _images(path, deep=False)
    folders = class_folders(path)
    members = [(folder.name, file) for folder in folders for file in _images(folder, deep=True)]
    if files and members:
        raise unfit(
            path,
            "it holds images both directly and in folders",
            "keep all images directly in it, or each in the folder of its class",
        )
    if not files and not members:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise unfit(path, "it holds no images", f"put files in it that end in one of {suffixes}")
    if members and {name.lower() for name, _ in members} <= SPLIT_NAMES:
        raise unfit(
            path,
            "its folders look like splits, not like classes",
            f"give the folder of one split, for example '{folders[0]}'",
        )
    chosen = files or [file for _, file in members]

    def decode(index: int) -> Tensor:
        return decode_image(chosen[index], image_size=image_size, channels=channels)

    return Records(
        decode,
        len(chosen),
        classes=[name for name, _ in members] if members and subject_level != 1 else None,
        subjects=None if subject_level is None else _subjects(path, chosen, subject_level),
    )


def class_folders(path: Path) -> list[Path]:
    """The folders directly in `path` that are not hidden, sorted by name."""
    return [
        entry for entry in sorted(path.iterdir()) if entry.is_dir() and _visible(Path(entry.name))
    ]


def _subjects(root: Path, files: Sequence[Path], level: int) -> list[str]:
    """The name of the folder `level` levels below `root` in which each file lies."""
    folders = [file.relative_to(root).parts[:-1] for file in files]
    shallow = sum(len(above) < level for above in folders)
    if shallow:
        deepest = min(len(above) for above in folders)
        raise unfit(
            root,
            f"{shallow} of its {len(files)} images lie less than {level} folders below it",
            f"set the level of subjects to at most {deepest}"
            if deepest
            else "move each image into a folder of its subject",
        )
    return [above[level - 1] for above in folders]


def _images(folder: Path, *, deep: bool) -> list[Path]:
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(
        file
        for file in found
        if file.suffix.lower() in IMAGE_SUFFIXES
        and _visible(file.relative_to(folder))
        and file.is_file()
    )


def _visible(relative: Path) -> bool:
    return not any(part.startswith(".") for part in relative.parts)
