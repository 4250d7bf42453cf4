"""Files and folders of one's own data, whole and damaged."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from dvae_fast._extras import MissingExtraError
from dvae_fast.data import SPLITS, DataError, Dataset, load_path

if TYPE_CHECKING:
    from collections.abc import Callable

N = 31
RNG = np.random.default_rng(5)
TABLE = RNG.normal(2, 3, (N, 4)).round(3)
COUNTS = RNG.poisson(2.0, (N, 6))
LABELS = RNG.integers(0, 3, N)


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def same(a: Dataset, b: Dataset) -> None:
    for split in SPLITS:
        assert torch.equal(getattr(a, split)[:], getattr(b, split)[:])
        if b.labels is not None:
            assert a.labels is not None
            assert torch.equal(a.labels[split], b.labels[split])
    assert (a.values, a.image_shape, a.classes) == (b.values, b.image_shape, b.classes)


# --- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": COUNTS, "y": LABELS},
        {"anything": COUNTS, "labels": LABELS},
        {"images": COUNTS, "targets": LABELS.astype(float), "image_ids": LABELS},
    ],
)
def test_npz_of_one_array(arrays: dict[str, Any]) -> None:
    np.savez_compressed("a.npz", **arrays)
    same(load_path("a.npz"), Dataset.from_arrays(COUNTS, labels=LABELS))


@pytest.mark.parametrize(
    "names",
    [
        ("train", "valid", "test", "train_labels", "val_labels", "test_labels"),
        ("x_train", "x_val", "x_test", "y_train", "y_val", "y_test"),
        ("train_images", "validation_images", "test_images", "labels_train", "y_valid", "test_y"),
    ],
)
def test_npz_of_named_splits(names: tuple[str, ...]) -> None:
    parts = np.split(COUNTS, (20, 26)) + np.split(LABELS, (20, 26))
    np.savez("a.npz", **dict(zip(names, parts, strict=True)))
    labels = dict(zip(SPLITS, parts[3:], strict=True))
    same(load_path("a.npz"), Dataset.from_arrays(*parts[:3], labels=labels))


def test_npz_with_labels_of_another_name() -> None:
    np.savez("a.npz", x=COUNTS, kind=np.array(["b", "a"])[LABELS % 2])
    data = load_path("a.npz", labels="kind")
    assert data.classes == ("a", "b")
    same(data, Dataset.from_arrays(COUNTS, labels=np.array(["b", "a"])[LABELS % 2]))


def test_npy_alone_and_in_a_folder() -> None:
    np.save("a.npy", TABLE)
    same(load_path("a.npy", seed=3), Dataset.from_arrays(TABLE, seed=3))
    folder = Path("parts")
    folder.mkdir()
    np.save(folder / "train.npy", TABLE[:20])
    np.save(folder / "test.npy", TABLE[20:])
    np.save(folder / "train_labels.npy", LABELS[:20])
    np.save(folder / "test_labels.npy", LABELS[20:])
    labels = {"train": LABELS[:20], "test": LABELS[20:]}
    same(load_path(folder), Dataset.from_arrays(TABLE[:20], test=TABLE[20:], labels=labels))


# --- tables ---------------------------------------------------------------------------------------


def csv(path: str, table: Any, separator: str = ",", head: str | None = "a,b,c,d") -> None:
    lines = [] if head is None else [head.replace(",", separator)]
    lines += [separator.join(map(str, row)) for row in table.tolist()]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name, separator", [("a.csv", ","), ("a.tsv", "\t"), ("a.csv", ";")])
@pytest.mark.parametrize("head", ["a,b,c,d", None])
def test_a_table_of_text(name: str, separator: str, head: str | None) -> None:
    csv(name, TABLE, separator, head)
    data = load_path(name)
    assert data.columns == (("a", "b", "c", "d") if head else ("0", "1", "2", "3"))
    same(data, Dataset.from_arrays(TABLE))


def test_a_table_with_labels_and_row_numbers() -> None:
    names = np.array(["oak", "ash", "elm"])[LABELS]
    lines = [",a,b,c,d,tree"]
    lines += [f"{i},{','.join(map(str, row))},{names[i]}" for i, row in enumerate(TABLE.tolist())]
    Path("a.csv").write_text("\n".join(lines))
    data = load_path("a.csv", labels="tree")
    assert data.columns == ("a", "b", "c", "d")
    assert data.classes == ("ash", "elm", "oak")
    same(data, Dataset.from_arrays(TABLE, labels=names))


@pytest.mark.parametrize("at", [0, 2, 4])
@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_a_table_without_names_has_labels_in_its_first_line(at: int, separator: str) -> None:
    names = np.array(["oak", "ash", "elm"])[LABELS]
    rows = [[*map(str, row)] for row in TABLE.tolist()]
    lines = [[*row[:at], name, *row[at:]] for row, name in zip(rows, names, strict=True)]
    Path("a.csv").write_text("\n".join(map(separator.join, lines)))
    with pytest.raises(DataError, match=f"'{at}' holds '{names[0]}' in row 1; --labels {at} "):
        load_path("a.csv")
    same(load_path("a.csv", labels=str(at)), Dataset.from_arrays(TABLE, labels=names))
    for head in ("0 1 2 3", "410 420.5 431 442"):  # names that are numbers are names
        named = head.split()
        named.insert(at, "tree")
        Path("b.csv").write_text("\n".join(map(separator.join, [named, *lines])))
        data = load_path("b.csv", labels="tree")
        assert data.columns == tuple(head.split())
        same(data, Dataset.from_arrays(TABLE, labels=names))


@pytest.mark.parametrize("missing", ["NA", "", "nan", "null"])
def test_a_first_line_in_which_a_value_is_missing(missing: str) -> None:
    csv("a.csv", TABLE, head=f"1.5,{missing},2.5,3")
    with pytest.raises(DataError, match="got nan in row 1, column '1'"):
        load_path("a.csv")


def test_names_are_as_many_as_values() -> None:
    """pandas takes what the first line has no name for as names of rows, and so leaves it out."""
    csv("a.csv", TABLE, head="# all that was measured")
    with pytest.raises(DataError, match=r"as many names in its first line as .*, got 1 and 4$"):
        load_path("a.csv")
    rows = [f"r{i},{','.join(map(str, row))}" for i, row in enumerate(TABLE.tolist())]
    Path("a.csv").write_text("\n".join(["a,b,c,d", *rows]))  # as R writes it
    same(load_path("a.csv"), Dataset.from_arrays(TABLE))


def test_a_whole_number_that_is_missing_is_no_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas")
    monkeypatch.setitem(sys.modules, "pyarrow", ModuleType("pyarrow"))
    Path("a.parquet").touch()
    frame = pandas.DataFrame({"a": pandas.array([1, None, 3, 4], "Int64"), "b": [0, 1, 2, 3]})
    monkeypatch.setattr(pandas, "read_parquet", lambda _: frame)
    with pytest.raises(DataError, match="got nan in row 2, column 'a'"):
        load_path("a.parquet")


def test_a_table_of_counts_stays_whole() -> None:
    csv("a.csv", COUNTS, head="a,b,c,d,e,f")
    same(load_path("a.csv"), Dataset.from_arrays(COUNTS))


@pytest.mark.library
def test_a_parquet_file() -> None:
    pytest.importorskip("pyarrow")
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(TABLE, columns=list("abcd")).assign(y=LABELS).to_parquet("a.parquet")
    data = load_path("a.parquet", labels="y")
    assert data.columns == tuple("abcd")
    same(data, Dataset.from_arrays(TABLE, labels=LABELS))


def test_a_parquet_file_needs_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    Path("a.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingExtraError, match=r"pyarrow, .*pip install 'dvae_fast\[tables\]'"):
        load_path("a.parquet")


# --- AnnData --------------------------------------------------------------------------------------


def h5ad(path: str, layout: str, values: Any = COUNTS) -> None:
    """As anndata writes it."""
    h5py = pytest.importorskip("h5py")
    sparse = pytest.importorskip("scipy.sparse")
    with h5py.File(path, "w") as file:
        if layout == "dense":
            file["X"] = values.astype(np.float32)
        else:
            matrix = getattr(sparse, layout)(values.astype(np.float32))
            x = file.create_group("X")
            x.attrs["encoding-type"], x.attrs["shape"] = layout, values.shape
            for part in ("data", "indices", "indptr"):
                x[part] = getattr(matrix, part)
        for name, count in (("obs", len(values)), ("var", values.shape[1])):
            table = file.create_group(name)
            table.attrs["_index"] = "_index"
            table["_index"] = [f"{name}{i}" for i in range(count)]
        kinds = file["obs"].create_group("kind")
        kinds["codes"], kinds["categories"] = LABELS.astype(np.int8), ["x", "y", "z"]
        file["obs"]["batch"] = LABELS
        file["obs"]["donor"] = ["ab"[i % 2] for i in LABELS]


@pytest.mark.parametrize("layout", ["dense", "csr_matrix", "csc_matrix"])
def test_an_h5ad_file(layout: str) -> None:
    h5ad("a.h5ad", layout)
    data = load_path("a.h5ad", labels="kind")
    assert data.columns == tuple(f"var{i}" for i in range(6))
    assert data.classes == ("x", "y", "z")
    expected = Dataset.from_arrays(COUNTS, labels=np.array(["x", "y", "z"])[LABELS])
    same(data, expected)
    assert data.values == "counts"
    assert load_path("a.h5ad", labels="donor").classes == ("a", "b")
    same(load_path("a.h5ad", labels="batch"), Dataset.from_arrays(COUNTS, labels=LABELS))


def test_an_h5ad_file_needs_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    Path("a.h5ad").write_bytes(b"")
    with pytest.raises(MissingExtraError, match=r"h5py, .*pip install 'dvae_fast\[counts\]'"):
        load_path("a.h5ad")


# --- images ---------------------------------------------------------------------------------------

SHAPE = (6, 5)
COLOURS = RNG.integers(0, 256, (N, *SHAPE, 3), np.uint8)


def images(folder: str, pixels: Any = COLOURS, where: Callable[[int], str] = lambda i: "") -> None:
    pil = pytest.importorskip("PIL.Image")
    for i, one in enumerate(pixels):
        path = Path(folder) / where(i) / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pil.fromarray(one).save(path)


def test_a_folder_of_colours() -> None:
    images("a")
    Path("a/notes.txt").write_text("no image")
    data = load_path("a")
    assert data.image_shape == (3, *SHAPE)
    assert data.labels is None
    same(data, Dataset.from_arrays(np.moveaxis(COLOURS, -1, 1)))


def test_folders_are_classes_and_splits() -> None:
    images("a", where=lambda i: "dog" if i % 3 else "cat")
    data = load_path("a")
    assert data.classes == ("cat", "dog")
    order = sorted(range(N), key=lambda i: (i % 3 != 0, i))
    labels = np.array([int(i % 3 != 0) for i in order])
    wanted = np.moveaxis(COLOURS[order], -1, 1)
    plain = Dataset.from_arrays(wanted, labels=labels)
    assert data.labels is not None
    assert plain.labels is not None
    assert torch.equal(data.train[:], plain.train[:])
    assert torch.equal(data.labels["test"], plain.labels["test"])
    images("b", where=lambda i: f"{'train' if i < 20 else 'test'}/{'dog' if i % 3 else 'cat'}")
    split = load_path("b")
    assert [len(getattr(split, name)) for name in SPLITS] == [18, 2, 11]
    assert split.classes == ("cat", "dog")


def test_size_and_grey() -> None:
    images("a")
    data = load_path("a", size="3x4", grey=True)
    assert data.image_shape == (1, 3, 4)
    assert data.values == "8bit"
    images("b", COLOURS[..., 0])
    assert load_path("b").image_shape == (1, *SHAPE)
    images("c", np.where(COLOURS[..., 0] > 99, 255, 0).astype(np.uint8))
    assert load_path("c").values == "binary"
    images("d", COLOURS[:9])
    images("d", [COLOURS[0, :3]], where=lambda i: "../d/other")
    with pytest.raises(DataError, match="is in no folder of a class"):
        load_path("d", size="4")


def test_sixteen_bits_are_the_upper_eight() -> None:
    pil = pytest.importorskip("PIL.Image")
    deep = COLOURS[..., 0].astype(np.uint16) * 256 + 200
    Path("a").mkdir()
    for i, one in enumerate(deep):
        pil.fromarray(one).save(f"a/{i:03}.png")
    images("b", COLOURS[..., 0])
    same(load_path("a"), load_path("b"))


# --- what is wrong --------------------------------------------------------------------------------


def write(name: str, content: bytes | str) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def npy(count: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(count))
    return file.getvalue()


def zipped(name: str, content: bytes) -> None:
    """An array called x, damaged before it was put into the archive."""
    with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)


def cut(folder: str) -> None:
    images(folder)
    path = Path(folder) / "004.png"
    path.write_bytes(path.read_bytes()[:-60])


def of_two_sizes() -> None:
    images("a", COLOURS[:9])
    images("a", [np.zeros((4, 4, 3), np.uint8)])


def negative() -> Any:
    array = COUNTS.copy()
    array[12, 4] = -1
    return array


CSV = "a,b\n" + "1,2.5\n" * 9


@pytest.mark.parametrize(
    ("make", "path", "message"),
    [
        (lambda: None, "a.csv", "there is no such file or folder"),
        (lambda: write("a.txt", "1"), "a.txt", "must be a folder of images, or a file that ends"),
        (lambda: write("a/x.txt", "1"), "a", "must hold images, or train.npy; it holds neither"),
        (lambda: Path("a").mkdir(), "a", "must hold images, or train.npy; it holds neither"),
        (lambda: write("a/x.png", "no image"), "a", "a/x.png cannot be read as an image"),
        (lambda: cut("a"), "a", "a/004.png cannot be read as an image"),
        (of_two_sizes, "a", r"of one size, .* a/000.png is 4 × 4, a/001.png 6 × 5"),
        (lambda: write("a.csv", ""), "a.csv", "must hold a table of numbers, and is empty"),
        (lambda: write("a.csv", "a,b\n"), "a.csv", "must hold rows and columns"),
        (lambda: write("a.csv", CSV + "1,x\n"), "a.csv", "'b' holds 'x' in row 10; --labels b"),
        (lambda: write("a.csv", CSV + "1,\n"), "a.csv", "got nan in row 10, column 'b'"),
        (lambda: write("a.csv", CSV + "inf,2\n"), "a.csv", "got inf in row 10, column 'a'"),
        (lambda: write("a.csv", CSV + "1,2,3\n"), "a.csv", "cannot be read as a table"),
        (lambda: write("a.csv", b"\xff\xfe\x00a"), "a.csv", "a.csv"),
        (lambda: csv("a.csv", negative(), head="a,b,c,d,e,f"), "a.csv", "row 13, column 'e'"),
        (lambda: np.save("a.npy", negative()), "a.npy", "the least is -1, in example 12, at 4"),
        (lambda: h5ad("a.h5ad", "csr_matrix", negative()), "a.h5ad", "row 13, column 'var4'"),
        (lambda: write("a.h5ad", "junk"), "a.h5ad", "cannot be read as an .h5ad file"),
        (lambda: write("a.npy", "junk"), "a.npy", "cannot be read as an .npy file"),
        (lambda: np.save("a.npy", np.array([{}], object)), "a.npy", "holds Python objects"),
        (lambda: np.save("a.npy", np.zeros(4)), "a.npy", r"must have shape \(N, D\)"),
        (lambda: np.save("a.npy", np.array(3.0)), "a.npy", r"must have shape .*, got one number"),
        (lambda: np.save("a.npy", np.zeros((4, 2), "c8")), "a.npy", "numbers, got complex64"),
        (lambda: write("a.npz", "junk"), "a.npz", "cannot be read as an .npz file"),
        (lambda: np.savez("a.npz", a=TABLE, b=TABLE), "a.npz", "must hold one array, .* got a, b"),
        (lambda: np.savez("a.npz", x=TABLE, data=TABLE), "a.npz", "got 'x' and 'data'"),
        (lambda: np.savez("a.npz", test=TABLE), "a.npz", "arrays called train, valid, test"),
        (lambda: np.savez("a.npz", x=TABLE, y=LABELS[1:]), "a.npz", "31 in train; got 30"),
        (lambda: np.savez("a.npz", x=np.array([{}], object)), "a.npz", "'x' holds Python objects"),
        (lambda: zipped("a.npz", b"no array"), "a.npz", "npz file: the magic"),
        (lambda: zipped("a.npz", npy(4)[:-1]), "a.npz", "'x' must hold 32 bytes .* got 31"),
        (lambda: zipped("a.npz", npy(4) + bytes(9)), "a.npz", "'x' must hold 32 bytes .* got 41"),
        (lambda: zipped("a.npz", npy(4).replace(b"(4,)", b"(9**9,)", 1)), "a.npz", "cannot be"),
        (
            lambda: zipped("a.npz", npy(4).replace(b"(4,), }    ", b"(40000,), }", 1)),
            "a.npz", "'x' must hold 320000 bytes",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(make: Callable[[], Any], path: str, message: str) -> None:
    make()
    with pytest.raises(DataError, match=message) as caught:
        load_path(path)
    assert "\n" not in str(caught.value)
    assert path.partition("/")[0] in str(caught.value)


def test_a_file_that_is_cut_short_is_not_mapped() -> None:
    np.save("a.npy", TABLE)
    Path("a.npy").write_bytes(Path("a.npy").read_bytes()[:-8])
    with pytest.raises(DataError, match="must hold 992 bytes of values, as its header says"):
        load_path("a.npy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "4"}, "size must be left out but for images, got '4'"),
        ({"grey": True}, "grey must be left out but for images, got True"),
        ({"labels": "y"}, "must have the column 'y' for labels, got a, b, c, d"),
        ({"split": "1"}, "split must be three shares"),
        ({"values": "counts"}, "counts must be whole numbers"),
        ({"binarise": "once"}, "binarise must be none for real numbers"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    csv("a.csv", TABLE)
    with pytest.raises((ValueError, DataError), match=message):
        load_path("a.csv", **options)
    images("a", COLOURS[:5])
    for size in ("x", "0", "4x", "1x2x3", "-3"):
        with pytest.raises(ValueError, match="size must be one number or HEIGHTxWIDTH"):
            load_path("a", size=size)


def test_what_was_loaded_last_is_kept_until_it_changes() -> None:
    csv("a.csv", TABLE)
    first = load_path("a.csv")
    again = load_path("a.csv", values=first.values, scaling=first.scaling)
    assert again is first
    assert load_path("a.csv") is first
    assert load_path("a.csv", seed=1) is not first
    csv("a.csv", TABLE[:-1])
    assert load_path("a.csv").fingerprint != first.fingerprint
