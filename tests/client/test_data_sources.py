"""Data on disk and in memory become the same records, and errors say nothing of them."""

import io
import json
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from tacit_client.data import ArraySource, LabeledArraySource, open_source
from tacit_client.data.pixels import fit_image, to_channels
from tacit_common.data import DataSource, LabeledDataSource
from tacit_common.errors import DataError, UnreadableRecordError
from tacit_common.testing import check_data_source

SIZE = 6
SECRET = "patient-4711"  # noqa: S105  # stands for anything that a record says


@pytest.fixture
def images() -> NDArray[np.uint8]:
    """Five grey images [5, SIZE, SIZE]."""
    return np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE), dtype=np.uint8)


LABELS = [0, 2, 1, 0, 2]


def png(image: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write_npy(folder: Path, images: NDArray[np.uint8]) -> Path:
    np.save(folder / "x.npy", images)
    return folder / "x.npy"


def write_npz(folder: Path, images: NDArray[np.uint8]) -> Path:
    np.savez(folder / "x.npz", images=images, labels=np.array(LABELS))
    return folder / "x.npz"


def write_folder(folder: Path, images: NDArray[np.uint8]) -> Path:
    for index, image in enumerate(images):
        (folder / f"{index}.png").write_bytes(png(image))
    (folder / "readme.txt").write_text("not an image")
    (folder / ".hidden.png").write_bytes(b"not an image either")
    return folder


def write_parquet(folder: Path, images: NDArray[np.uint8]) -> Path:
    table = pa.table({"image": [png(image) for image in images], "label": LABELS, "other": LABELS})
    parquet.write_table(table, folder / "x.parquet")
    return folder / "x.parquet"


def write_hugging_face(folder: Path, images: NDArray[np.uint8]) -> Path:
    from datasets import ClassLabel, Dataset, Features, disable_progress_bars
    from datasets import Image as ImageFeature

    disable_progress_bars()
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b", "c"])})
    rows = {"image": [{"bytes": png(i), "path": None} for i in images], "label": LABELS}
    Dataset.from_dict(rows, features=features).to_parquet(str(folder / "hf.parquet"))
    return folder / "hf.parquet"


def write_csv(folder: Path, images: NDArray[np.uint8]) -> Path:
    (folder / "pictures").mkdir()
    write_folder(folder / "pictures", images)
    rows = [f"pictures/{index}.png,{label}" for index, label in enumerate(LABELS)]
    (folder / "x.csv").write_text("\n".join(["image,label", *rows]))
    return folder / "x.csv"


def write_jsonl(folder: Path, images: NDArray[np.uint8]) -> Path:
    rows = [
        json.dumps({"image": image.tolist(), "label": label})
        for image, label in zip(images, LABELS, strict=True)
    ]
    (folder / "x.jsonl").write_text("\n".join(rows))
    return folder / "x.jsonl"


Writer = Callable[[Path, NDArray[np.uint8]], Path]
LABELLED: list[Writer] = [write_npz, write_parquet, write_hugging_face, write_csv, write_jsonl]
UNLABELLED: list[Writer] = [write_npy, write_folder]


def opened(path: Path, *, image_size: int = SIZE, channels: int = 1) -> DataSource:
    return open_source(path, image_size=image_size, channels=channels)


@pytest.mark.parametrize("write", LABELLED + UNLABELLED)
def test_every_format_gives_the_same_records_in_any_order(
    write: Writer, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    source = opened(write(tmp_path, images))
    assert len(source) == len(images)
    for index in (3, 0, 4, 3):
        record = source[index]
        assert record.dtype == torch.float32
        expected = images[index][None].astype(np.float32) / 255
        np.testing.assert_allclose(record.numpy(), expected, rtol=0, atol=1e-7)
        assert source.unit_of(index) == index
    with pytest.raises(IndexError):
        source[len(images)]


@pytest.mark.parametrize("write", LABELLED)
def test_labels_are_read_where_there_are_some(
    write: Writer, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    source = opened(write(tmp_path, images))
    assert isinstance(source, LabeledDataSource)
    assert [source.label_of(index) for index in range(len(source))] == LABELS


@pytest.mark.parametrize("write", UNLABELLED)
def test_a_source_without_labels_has_no_label_of(
    write: Writer, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    assert not isinstance(opened(write(tmp_path, images)), LabeledDataSource)


def test_opening_a_table_leaves_no_copy_on_disk_and_asks_no_network(
    images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import config

    def no_network(*args: object, **kwargs: object) -> None:
        raise AssertionError("a socket was opened")

    path = write_hugging_face(tmp_path, images)
    cache = Path(config.HF_DATASETS_CACHE)
    before = set(cache.rglob("*")) if cache.exists() else set()
    monkeypatch.setattr(socket, "socket", no_network)
    source = opened(path)
    torch.stack([source[index] for index in range(len(source))])
    assert (set(cache.rglob("*")) if cache.exists() else set()) == before
    assert list(tmp_path.iterdir()) == [path]


def class_folder(root: Path, names: list[str], images: NDArray[np.uint8]) -> Path:
    for name, image in zip(names, images, strict=False):
        (root / name / "deep").mkdir(parents=True)
        (root / name / "deep" / "1.png").write_bytes(png(image))
    return root


@pytest.mark.parametrize(
    ("folders", "class_names", "labels"),
    [
        (["cat", "dog", "ant"], None, [0, 1, 2]),  # sorted: ant, cat, dog
        (["10", "2"], None, [10, 2]),  # sorted as text, numbered as themselves
        (["dog"], ["cat", "dog"], [1]),  # a site that lacks a class
    ],
)
def test_class_folders_are_numbered(
    folders: list[str],
    class_names: list[str] | None,
    labels: list[int],
    images: NDArray[np.uint8],
    tmp_path: Path,
) -> None:
    root = class_folder(tmp_path, folders, images)
    source = open_source(root, image_size=SIZE, channels=1, class_names=class_names)
    assert isinstance(source, LabeledDataSource)
    assert [source.label_of(index) for index in range(len(source))] == labels


@pytest.mark.parametrize(
    "shape", [(4, 3, SIZE, SIZE), (4, SIZE, SIZE, 3), (4, 4, SIZE, SIZE), (4, SIZE, SIZE, 4)]
)
def test_channels_are_found_first_or_last(shape: tuple[int, ...], tmp_path: Path) -> None:
    stored = np.random.default_rng(1).random(shape).astype(np.float32)
    np.save(tmp_path / "x.npy", stored)
    record = opened(tmp_path / "x.npy", channels=3)[2]
    first = stored[2] if shape[1] != SIZE else stored[2].transpose(2, 0, 1)
    np.testing.assert_array_equal(record.numpy(), first[:3])


@pytest.mark.parametrize(
    ("dtype", "largest"), [(np.uint8, 255), (np.uint16, 65535), (np.bool_, 1), (np.float64, 1.0)]
)
def test_the_largest_value_of_a_type_becomes_one(
    dtype: type[np.generic], largest: float, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.full((2, SIZE, SIZE), largest, dtype=dtype))
    assert bool((opened(tmp_path / "x.npy")[1] == 1).all())


def test_a_sixteen_bit_image_keeps_its_depth(tmp_path: Path) -> None:
    deep = np.full((SIZE, SIZE), 300, dtype=np.uint16)
    (tmp_path / "x.png").write_bytes(png(deep))
    np.testing.assert_allclose(opened(tmp_path)[0].numpy(), 300 / 65535, rtol=1e-6)


def test_colour_files_become_grey_as_pillow_does_it(tmp_path: Path) -> None:
    colour = np.random.default_rng(2).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    (tmp_path / "x.png").write_bytes(png(colour))
    np.save(tmp_path / "x.npy", colour[None])
    from_file = opened(tmp_path)[0].numpy()
    from_array = opened(tmp_path / "x.npy")[0].numpy()
    np.testing.assert_allclose(from_file, from_array, rtol=0, atol=1 / 255)


def test_a_transparent_palette_image_is_read_without_a_warning(tmp_path: Path) -> None:
    palette = Image.new("P", (SIZE, SIZE), 3)
    palette.putpalette(bytes(range(256)) * 3)
    palette.save(tmp_path / "x.png", transparency=b"\x80" * 4)
    assert opened(tmp_path, channels=3)[0].shape == (3, SIZE, SIZE)


def test_a_photograph_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    photo = Image.fromarray(np.repeat([[0, 255]], 2, axis=0).astype(np.uint8))
    exif = photo.getexif()
    exif[0x0112] = 3  # stored upside down
    photo.save(tmp_path / "x.png", exif=exif)
    assert opened(tmp_path, image_size=2)[0][0, 0].tolist() == [1.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.sampled_from([1, 3, 4]), st.integers(1, 20), st.integers(1, 20)),
    image_size=st.integers(1, 24),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**16),
)
def test_a_fitted_image_has_the_asked_shape_and_stays_in_the_unit_interval(
    shape: tuple[int, int, int], image_size: int, channels: int, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 2, shape).astype(np.float32)
    fitted = fit_image(image, image_size=image_size, channels=channels)
    assert fitted.shape == (channels, image_size, image_size)
    assert float(fitted.min()) >= 0
    assert float(fitted.max()) <= 1


@settings(max_examples=30, deadline=None)
@given(level=st.floats(0, 1, width=32), image_size=st.integers(1, 24))
def test_resizing_keeps_a_constant_image_constant(level: float, image_size: int) -> None:
    image = np.full((1, 7, 11), level, dtype=np.float32)
    fitted = fit_image(image, image_size=image_size, channels=3)
    np.testing.assert_allclose(fitted.numpy(), level, rtol=1e-5, atol=1e-7)


def test_a_record_does_not_alias_the_file(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    source = opened(write_npy(tmp_path, images))
    source[0].zero_()
    assert float(source[0].abs().sum()) > 0


def test_an_image_that_fits_is_not_resampled() -> None:
    image = np.random.default_rng(3).random((3, SIZE, SIZE)).astype(np.float32)
    assert to_channels(image, 3) is image
    np.testing.assert_array_equal(fit_image(image, image_size=SIZE, channels=3).numpy(), image)


# --- errors ----------------------------------------------------------------------------


NOISE = np.random.default_rng(4).integers(0, 256, (40, 40), dtype=np.uint8)


@pytest.mark.parametrize(
    "content",
    [b"", SECRET.encode(), png(NOISE)[:400]],
    ids=["empty", "text", "cut off"],
)
def test_a_damaged_file_is_named_by_its_index_alone(
    content: bytes, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    write_folder(tmp_path, images)
    (tmp_path / f"2-{SECRET}.png").write_bytes(content)
    source = opened(tmp_path)
    with pytest.raises(UnreadableRecordError) as caught:
        source[2]
    assert "record 2" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__
    assert source[3].shape == (1, SIZE, SIZE)


def test_an_image_too_large_to_be_true_is_not_decoded(
    images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened(write_folder(tmp_path, images))
    assert source[0].shape == (1, SIZE, SIZE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIZE * SIZE - 1)  # Pillow warns above this
    with pytest.raises(UnreadableRecordError):
        source[0]


@pytest.mark.parametrize("bad", [np.nan, None])
def test_a_bad_pixel_condemns_its_record_and_no_other(
    bad: float | None, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    if bad is None:
        rows = [{"image": [[0.5]]}, {"image": [[1.5]]}]  # not in [0, 1]
        (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
        source = opened(tmp_path / "x.jsonl")
    else:
        floats = images.astype(np.float32) / 255
        floats[1, 0, 0] = bad
        np.save(tmp_path / "x.npy", floats)
        source = opened(tmp_path / "x.npy")
    assert source[0].shape == (1, SIZE, SIZE)
    with pytest.raises(UnreadableRecordError, match="record 1"):
        source[1]


def test_a_missing_file_of_a_table_is_named_by_its_index_alone(tmp_path: Path) -> None:
    touch(tmp_path / "there.png")
    (tmp_path / "x.csv").write_text(f"image\n{SECRET}.png\nthere.png\n")
    source = opened(tmp_path / "x.csv")
    with pytest.raises(UnreadableRecordError, match="record 0") as caught:
        source[0]
    assert SECRET not in str(caught.value)
    assert source[1].shape == (1, SIZE, SIZE)


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(np.zeros((2, 2), np.uint8)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.5, 255.0])
@pytest.mark.parametrize("in_memory", [True, False], ids=["in memory", "on disk"])
def test_an_array_is_opened_whatever_one_of_its_pixels_is(
    bad: float, in_memory: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = np.random.default_rng(5).random((3, 1, SIZE, SIZE), dtype=np.float32)
    images[1, 0, 2, 3] = bad
    source: DataSource
    if in_memory:
        source = ArraySource(torch.from_numpy(images))
    else:
        source = opened(save_array(tmp_path, images))
        assert "1 of 3 images" in caplog.text
    with pytest.raises(UnreadableRecordError, match="record 1") as caught:
        source[1]
    assert str(bad) not in str(caught.value)
    for index in (0, 2):
        np.testing.assert_array_equal(source[index].numpy(), images[index])
    check_data_source(source)


def test_records_behind_one_that_is_damaged_are_found(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"")
    touch(tmp_path / "1.png")
    assert len(opened(tmp_path)) == 2


def test_a_null_image_condemns_its_row_and_no_other(tmp_path: Path) -> None:
    whole = png(np.zeros((SIZE, SIZE), np.uint8))
    parquet.write_table(pa.table({"image": [None, whole]}), tmp_path / "x.parquet")
    source = opened(tmp_path / "x.parquet")
    assert source[1].shape == (1, SIZE, SIZE)
    with pytest.raises(UnreadableRecordError, match="record 0"):
        source[0]


def test_images_in_hidden_folders_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path / "cat" / "1.png")
    touch(tmp_path / "cat" / ".thumbnails" / "1.png")
    touch(tmp_path / ".trash" / "1.png")
    assert len(opened(tmp_path)) == 1


def save_object_array(folder: Path) -> Path:
    np.save(folder / "x.npy", np.array([{SECRET: 1}], dtype=object), allow_pickle=True)
    return folder / "x.npy"


def save_array(folder: Path, array: NDArray[np.generic]) -> Path:
    np.save(folder / "x.npy", array)
    return folder / "x.npy"


def save_text(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def mixed_folder(folder: Path) -> Path:
    touch(folder / "1.png")
    touch(folder / "cat" / "1.png")
    return folder


def split_folder(folder: Path) -> Path:
    touch(folder / "train" / "1.png")
    touch(folder / "test" / "1.png")
    return folder


def save_npz(folder: Path, **arrays: NDArray[np.generic]) -> Path:
    np.savez(folder / "x.npz", allow_pickle=False, **arrays)
    return folder / "x.npz"


GREY = np.zeros((2, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda f: f / "missing", "no such file"),
        (lambda f: f, "no images"),
        (mixed_folder, "both directly and in folders"),
        (split_folder, "look like splits"),
        (lambda f: save_text(f, "x.docx", SECRET), "not known"),
        (save_object_array, "without pickle"),
        (lambda f: save_text(f, "x.npy", SECRET), "without pickle"),
        (lambda f: save_text(f, "x.npz", SECRET), "without pickle"),
        (lambda f: save_npz(f, pictures=GREY), "no array 'images'"),
        (lambda f: save_npz(f, images=GREY, labels=np.array([1])), "its labels"),
        (lambda f: save_npz(f, images=GREY, labels=np.array([1.5, 0])), "its labels"),
        (lambda f: save_npz(f, images=GREY, labels=np.array([1, -1])), "negative"),
        (lambda f: save_array(f, np.zeros((0, 4, 4), np.uint8)), "holds no images"),
        (lambda f: save_array(f, np.zeros((4, 4), np.uint8)), "shape"),
        (lambda f: save_array(f, np.zeros((2, 2, 4, 4), np.uint8)), "2 channels"),
        (lambda f: save_array(f, np.zeros((2, 4, 4), np.int64)), "int64"),
        (lambda f: save_array(f, np.full((2, 4, 4), 255.0)), "outside [0, 1]"),
        (lambda f: save_array(f, np.full((2, 4, 4), np.nan)), "NaN"),
        (lambda f: save_text(f, "x.png", SECRET).parent, "none of its records"),
        (lambda f: save_text(f, "x.csv", f"image\n{SECRET}.png"), "none of its records"),
        (lambda f: save_text(f, "x.csv", f"picture\n{SECRET}"), "no column 'image'"),
        (lambda f: save_text(f, "x.csv", "image\n"), "no rows"),
        (lambda f: save_text(f, "x.csv", "image\n4711\n"), "column 'image' is int64"),
        (lambda f: save_text(f, "x.csv", "image,label\na.png,1.5"), "column 'label' is double"),
        (lambda f: save_text(f, "x.csv", f"image\n{SECRET},{SECRET}"), "cannot read"),
        (lambda f: save_text(f, "x.jsonl", f'{{"{SECRET}'), "cannot read"),
        (lambda f: save_text(f, "x.parquet", SECRET), "cannot read"),
    ],
)
def test_what_cannot_be_opened_is_a_data_error_that_quotes_nothing(
    make: Callable[[Path], Path], why: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        opened(make(tmp_path))
    assert why in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.fix


def test_image_files_cannot_give_channels_that_they_do_not_have(
    images: NDArray[np.uint8], tmp_path: Path
) -> None:
    write_folder(tmp_path, images)
    with pytest.raises(DataError, match="2 channels"):
        opened(tmp_path, channels=2)


def test_a_class_that_class_names_lack_is_refused_unnamed(
    images: NDArray[np.uint8], tmp_path: Path
) -> None:
    root = class_folder(tmp_path, [SECRET], images)
    with pytest.raises(DataError, match="not among class_names") as caught:
        open_source(root, image_size=SIZE, channels=1, class_names=["cat"])
    assert SECRET not in str(caught.value)


def test_class_names_that_hold_a_name_twice_are_refused(
    images: NDArray[np.uint8], tmp_path: Path
) -> None:
    root = class_folder(tmp_path, ["cat"], images)
    with pytest.raises(DataError, match="twice"):
        open_source(root, image_size=SIZE, channels=1, class_names=["cat", "dog", "cat"])


@pytest.mark.parametrize("write", ["csv", "folder"])
def test_two_sites_with_the_same_class_names_give_a_class_one_number(
    write: str, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    numbers = []
    for site, held in (("a", ["cat", "dog"]), ("b", ["dog"])):
        root = tmp_path / site
        class_folder(root, held, images)
        if write == "csv":
            rows = [f"{name}/deep/1.png,{name}" for name in held]
            root = save_text(root, "x.csv", "\n".join(["image,label", *rows]))
        source = open_source(root, image_size=SIZE, channels=1, class_names=["ant", "cat", "dog"])
        assert isinstance(source, LabeledDataSource)
        numbers.append([source.label_of(index) for index in range(len(source))])
    assert numbers == [[1, 2], [2]]


# --- in memory -------------------------------------------------------------------------


def test_an_array_source_takes_records_with_their_labels() -> None:
    images = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    source = LabeledArraySource(images, np.array([5, 4, 3, 2, 1, 0]))
    part = source.take(np.array([4, 1]))
    assert isinstance(part, LabeledDataSource)
    assert torch.equal(part[0], images[4])
    assert [part.label_of(0), part.label_of(1)] == [1, 4]
    assert torch.equal(ArraySource(images).take([2])[0], images[2])
    assert not isinstance(ArraySource(images), LabeledDataSource)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(0, 1, 4, 4),
        torch.zeros(4, 4, 4),
        torch.zeros(2, 1, 4, 4, dtype=torch.float64),
        torch.full((2, 1, 4, 4), 1.5),
        torch.full((2, 1, 4, 4), float("nan")),
    ],
    ids=["empty", "no channels", "float64", "too bright", "nan"],
)
def test_an_array_source_refuses_what_is_no_image(images: torch.Tensor) -> None:
    with pytest.raises(DataError):
        ArraySource(images)


@pytest.mark.parametrize(
    "labels", [np.array([0]), np.array([0, -1]), np.array([0.0, 1.0])], ids=["few", "-1", "float"]
)
def test_an_array_source_refuses_labels_that_do_not_fit(labels: NDArray[np.int64]) -> None:
    with pytest.raises(DataError):
        LabeledArraySource(torch.zeros(2, 1, 4, 4), labels)
