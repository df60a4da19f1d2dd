"""Every kind of source gives its rows by random access; every bad input says what is wrong."""

import csv
import importlib.util
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from jaxft.data import records
from jaxft.data.images import decode
from jaxft.data.sources import open_source

ROWS = [
    {"text": "plain", "label": "ham"},
    {"text": 'a "quoted", text\nover two lines', "label": "spam"},
    {"text": "ünïcödé 中文 😀", "label": "ham"},
    {"text": "", "label": "spam"},
]


def write_csv(path, delimiter=",", encoding="utf-8"):
    def field(value):
        return '"' + value.replace('"', '""') + '"'

    lines = [delimiter.join(("text", "label"))]
    lines += [delimiter.join(map(field, row.values())) for row in ROWS]
    path.write_bytes("\r\n".join(lines).encode(encoding) + b"\r\n")


def write_jsonl(path):
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n", "utf-8")


def write_parquet(path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


@pytest.mark.parametrize(
    "name, write",
    [
        ("a.csv", write_csv),
        ("bom.csv", lambda path: write_csv(path, encoding="utf-8-sig")),
        ("a.tsv", lambda path: write_csv(path, delimiter="\t")),
        ("a.jsonl", write_jsonl),
        ("a.parquet", write_parquet),
    ],
)
def test_files_give_their_rows_in_any_order(tmp_path, name, write):
    write(tmp_path / name)
    source = open_source(str(tmp_path / name))
    assert source.columns == ("text", "label")
    assert [source[row] for row in (3, 0, 2, 1)] == [ROWS[row] for row in (3, 0, 2, 1)]
    assert list(source.column("text")) == [row["text"] for row in ROWS]
    assert len(source) == 4 and source.name == name


def test_rows_are_placed_by_line_where_a_row_spans_lines(tmp_path):
    write_csv(tmp_path / "a.csv")
    source = open_source(str(tmp_path / "a.csv"))
    assert [source.where(row) for row in range(4)] == [f"a.csv, line {n}" for n in (2, 3, 5, 6)]
    write_parquet(tmp_path / "a.parquet")
    assert open_source(str(tmp_path / "a.parquet")).where(2) == "a.parquet, row 3"


def test_jsonl_rows_may_lack_keys(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": "y", "label": 1}\n')
    assert open_source(str(tmp_path / "a.jsonl"))[0] == {"text": "x", "label": None}


BAD_FILES = {
    "empty.csv": (b"", "empty.csv: the file is empty"),
    "header.csv": (b"text,label\n", "header.csv: there are no rows after the header"),
    "numbers.csv": (b"1,2\n3,4\n", "first line must name the columns, but it holds '1', '2'"),
    "twice.csv": (b"text,text\na,b\n", "header names 'text' more than once"),
    "ragged.csv": (b'text,label\n"a\nb",c\nd\n', "ragged.csv, line 4: 1 fields, but the header"),
    "long.csv": (b"text,label\na,b,c\n", "long.csv, line 2: 3 fields, but the header has 2"),
    "open.csv": (b'text,label\na,b\n"c,d\ne,f\n', "open.csv, line 3: bad quoting"),
    "latin.csv": ("text,label\na,b\né,c\n".encode("latin-1"), "line 3: byte 0xe9 is not UTF-8"),
    "empty.jsonl": (b"\n", "empty.jsonl: the file is empty"),
    "bad.jsonl": (b'{"a": 1}\n{"a": \n', "bad.jsonl, line 2: not JSON"),
    "list.jsonl": (b"[1, 2]\n", "list.jsonl, line 1: a list, where each row must be an object"),
    "latin.jsonl": (b'{"a": "\xe9"}\n', "latin.jsonl, line 1: byte 0xe9 is not UTF-8"),
    "bad.parquet": (b"PAR1 not really", "bad.parquet: not a readable Parquet file"),
    "table.xlsx": (b"?", "unknown kind of file '.xlsx'"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_end_in_one_line(tmp_path, name):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        open_source(str(tmp_path / name))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("semicolons.csv", 'text;label\n"a; b, c";ham\nd, e;spam\n', "semicolons"),
        ("bars.csv", "text|label\na; b, c|ham\nd, e|spam\n", "bars"),
        ("tabs.csv", "text\tlabel\na; b, c\tham\nd, e\tspam\n", "tabs"),
        ("commas.tsv", 'text,label\n"a; b, c",ham\n"d, e",spam\n', "commas"),
        ("plain.csv", 'text,label\n"a; b, c",ham\n"d, e",spam\n', ""),
    ],
)
def test_the_header_tells_the_delimiter(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    source = open_source(str(tmp_path / name))
    assert source.columns == ("text", "label")
    assert list(source.column("text")) == ["a; b, c", "d, e"]
    assert [f"separated by {said}" in note for note in source.notes] == [True] * bool(said)


def test_the_delimiter_is_given_where_the_header_does_not_tell(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text;label\na;ham\nb;c;spam\n")
    with pytest.raises(ValueError, match="'text;label' is not separated by ','.*data.delimiter"):
        open_source(str(path))
    path.write_text("text:label\na;b:ham\n")
    assert open_source(str(path), delimiter=":")[0] == {"text": "a;b", "label": "ham"}
    path.write_text("text\tlabel\na,b\tham\n")
    for tab in ("tab", "\\t", "\t"):
        assert open_source(str(path), delimiter=tab)[0] == {"text": "a,b", "label": "ham"}
    # A single column is no reason to look further.
    path.write_text("text\na;b\nc|d\n")
    assert open_source(str(path)).column("text") == ["a;b", "c|d"]
    for bad in (";;", '"', "a", "\n"):
        with pytest.raises(ValueError, match="config.data.delimiter=.* is not one character"):
            open_source(str(path), delimiter=bad)


# content after the header -> texts, and the lines they begin in
TSV = {
    # The lone quotes would make one row of the first three.
    "plain": (
        '"a\tx\nb\ty\nc"\tz\n5" disk\tx\n"d"\ty\n',
        ['"a', "b", 'c"', '5" disk', '"d"'],
        [2, 3, 4, 5, 6],
    ),
    "an odd one": ('"a\tx\nb\ty\n', ['"a', "b"], [2, 3]),
    "quoted": ('"a ""b"""\tx\n"c"\ty\nd\tx\n', ['a "b"', "c", "d"], [2, 3, 4]),
    "quoted, over lines": ('"a\t\tb\nc"\tx\nd\ty\n', ["a\t\tb\nc", "d"], [2, 4]),
    "Windows": ('"a\tx\r\n\r\nb\ty\r\n', ['"a', "b"], [2, 4]),
}


@pytest.mark.parametrize("dialect", TSV)
def test_tsv_is_read_in_its_dialect(tmp_path, dialect):
    content, texts, lines = TSV[dialect]
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + content, newline="")
    source = open_source(str(tmp_path / "a.tsv"))
    assert list(source.column("text")) == texts and list(source.lines) == lines


def test_long_fields_are_fields(tmp_path):
    before = csv.field_size_limit()
    long = "word " * 60_000
    for name in ("a.csv", "a.tsv"):
        delimiter = "," if name == "a.csv" else "\t"
        (tmp_path / name).write_text(f'text{delimiter}label\n"{long}"{delimiter}x\nb{delimiter}y\n')
        assert list(open_source(str(tmp_path / name)).column("text")) == [long, "b"]
    assert csv.field_size_limit() == before


def test_the_quote_that_is_never_closed_is_named_by_its_line(tmp_path):
    path = tmp_path / "a.csv"
    # The row begins in line 3, its second field in line 4.
    path.write_text('text,label\na,b\n"c\nd","e\nf,g\n')
    with pytest.raises(ValueError, match="a.csv, line 4: .*opened here is never closed"):
        open_source(str(path))
    path.write_text('text,label\na,b\n"c" d,e\n')
    with pytest.raises(ValueError, match="a.csv, line 3: .*goes on with ' d,e"):
        open_source(str(path))
    (tmp_path / "a.tsv").write_text('text\tlabel\n"a\tx\nb\n')
    with pytest.raises(ValueError, match="a.tsv, line 3: 1 fields, but the header has 2"):
        open_source(str(tmp_path / "a.tsv"))


def test_missing_files_name_the_nearest(tmp_path):
    write_csv(tmp_path / "train.csv")
    with pytest.raises(ValueError, match="trian.csv: no such file.*did you mean 'train.csv'"):
        open_source(str(tmp_path / "trian.csv"))
    with pytest.raises(ValueError, match="no such file or folder; .* holds 'train.csv'"):
        open_source(str(tmp_path / "zzz"))
    with pytest.raises(ValueError, match="there is no folder"):
        open_source(str(tmp_path / "no" / "train.csv"))
    with pytest.raises(ValueError, match="no dataset is named; a dataset is a file"):
        open_source("")


# Image folders


def test_an_image_folder_is_sorted_by_class_and_file(tmp_path):
    for name in ("roses/b.PNG", "roses/a.jpg", "daisy/c.webp", "daisy/notes.txt", ".cache/x.png"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        if file.suffix == ".txt":
            file.write_text("not an image")
        else:
            Image.new("RGB", (2, 2)).save(file)
    source = open_source(str(tmp_path))
    assert [row["image"] for row in map(source.__getitem__, range(3))] == [
        str(tmp_path / name) for name in ("daisy/c.webp", "roses/a.jpg", "roses/b.PNG")
    ]
    assert list(source.column("label")) == [0, 1, 1]
    assert source.class_names == {"label": ("daisy", "roses")}


def test_a_folder_of_splits_names_the_splits(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "daisy").mkdir(parents=True)
        Image.new("L", (2, 2)).save(tmp_path / split / "daisy" / "a.png")
    with pytest.raises(ValueError, match="the class folders are in '.*/test', '.*/train'"):
        open_source(str(tmp_path))
    (tmp_path / "files").mkdir()
    write_csv(tmp_path / "files" / "train.csv")
    with pytest.raises(ValueError, match="not an image folder.*it holds 'train.csv'"):
        open_source(str(tmp_path / "files"))


def test_images_without_classes_are_opened_for_prediction(tmp_path):
    flat, nested, mixed = tmp_path / "flat", tmp_path / "nested", tmp_path / "mixed"
    for name in ("flat/b.png", "flat/a.png", "nested/x/a.png", "mixed/c.png", "mixed/x/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(tmp_path / name)
    for spec, expected in (
        (flat, ["flat/a.png", "flat/b.png"]),
        (flat / "a.png", ["flat/a.png"]),
        (nested, ["nested/x/a.png"]),
        (mixed, ["mixed/c.png", "mixed/x/a.png"]),
    ):
        source = open_source(str(spec), labelled=False)
        assert [source[i] for i in range(len(source))] == [
            {"image": str(tmp_path / name)} for name in expected
        ]
        assert source.where(0) == str(tmp_path / expected[0])  # the file, not a number
    with pytest.raises(ValueError, match="its 2 images are in no subfolder, so in no class"):
        open_source(str(flat))
    with pytest.raises(ValueError, match="a.png: a single image has no label"):
        open_source(str(flat / "a.png"))
    # Classes are classes also where they are not asked for, and what is passed over is said.
    (nested / "y").mkdir()
    Image.new("L", (2, 2)).save(nested / "y" / "b.png")
    assert open_source(str(nested), labelled=False).class_names == {"label": ("x", "y")}
    assert "1 images outside the class folders" in open_source(str(mixed)).notes[0]


def test_a_folder_of_a_hive_partition_is_no_column(tmp_path):
    folder = tmp_path / "lang=en"
    folder.mkdir()
    write_parquet(folder / "a.parquet")
    assert open_source(str(folder / "a.parquet")).columns == ("text", "label")


def test_parquet_values_that_python_cannot_hold_are_text(tmp_path):
    years = pyarrow.array([10**15, 0], pyarrow.timestamp("ms"))
    data = pyarrow.table({"text": ["a", "b"], "year": years})
    pyarrow.parquet.write_table(data, tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    assert source[0] == {"text": "a", "year": source.column("year")[0]}
    assert isinstance(source[0]["year"], str)


# Hugging Face datasets


def test_saved_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["ham", "spam"])
    data = datasets.Dataset.from_dict(
        {"text": ["a", "b", "c"], "label": [1, 0, 1]},
        features=datasets.Features({"text": datasets.Value("string"), "label": names}),
    )
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data, "test": data.select([2])}).save_to_disk(
        str(tmp_path / "splits")
    )
    one = open_source(str(tmp_path / "one"))
    assert [one[row] for row in (2, 0)] == [{"text": "c", "label": 1}, {"text": "a", "label": 1}]
    assert one.class_names == {"label": ("ham", "spam")}
    test = open_source(f"{tmp_path}/splits:test")
    assert list(test.column("text")) == ["c"] and test.name == "splits:test"
    with pytest.raises(ValueError, match="has several splits; name one: .*:train, .*:test"):
        open_source(str(tmp_path / "splits"))
    with pytest.raises(ValueError, match="has no split 'dev'"):
        open_source(f"{tmp_path}/splits:dev")
    with pytest.raises(ValueError, match="without splits; got split 'train'"):
        open_source(f"{tmp_path}/one:train")
    # The class names travel in the metadata of a Parquet file, too.
    data.to_parquet(str(tmp_path / "a.parquet"))
    assert open_source(str(tmp_path / "a.parquet")).class_names == {"label": ("ham", "spam")}


def test_hub_names(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_dict({"text": ["a"], "label": ["b"]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    for spec in ("hf:imdb:train", "hf:owner/name:config:test", "hf:imdb:train[:10%]"):
        assert open_source(spec)[0] == {"text": "a", "label": "b"}
    assert asked == [
        ("imdb", None, "train"),
        ("owner/name", "config", "test"),
        ("imdb", None, "train[:10%]"),
    ]
    with pytest.raises(ValueError, match="is named hf:NAME:SPLIT"):
        open_source("hf:imdb")

    def unreachable(name, config, split):
        raise ConnectionError("Couldn't reach the hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match="^hf:x:train: could not be loaded .Couldn't reach") as e:
        open_source("hf:x:train")
    assert "\n" not in str(e.value)


def test_hugging_face_datasets_are_an_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'jaxft\[hf\]'"):
        open_source("hf:imdb:train")


# TFDS


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A small dataset prepared by TFDS without tensorflow."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")

    class Sentiment(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        # For a class in a package TFDS imports importlib_resources, which it does not declare.
        __module__ = "sentiment"
        VERSION = tfds.core.Version("1.2.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "sentence": tfds.features.Text(),
                        "image": tfds.features.Image(shape=(2, 3, 3), encoding_format="png"),
                        "label": tfds.features.ClassLabel(names=["negative", "positive"]),
                    }
                ),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(10), "test": self._generate_examples(4)}

        def _generate_examples(self, count):
            for i in range(count):
                png = io.BytesIO()
                Image.new("RGB", (3, 2), (i, 0, 0)).save(png, "PNG")
                png.seek(0)
                yield i, {"sentence": f"sätz {i}", "image": png, "label": i % 2}

    Sentiment(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return str(folder)


def test_tfds_by_name(tfds_dir, monkeypatch):
    from tensorflow_datasets.core.data_sources.base import BaseDataSource

    source = open_source("tfds:sentiment:train", data_dir=tfds_dir)
    assert len(source) == 10 and set(source.columns) == {"sentence", "image", "label"}
    assert source[7]["sentence"] == "sätz 7" and source[7]["label"] == 1
    pixels = np.asarray(decode(source[7]["image"], channels=3))
    np.testing.assert_array_equal(pixels, np.full((2, 3, 3), [7, 0, 0], np.uint8))
    assert source.column("sentence")[:2] == ["sätz 0", "sätz 1"]
    assert source.class_names == {"label": ("negative", "positive")}

    # One pass over the records serves all texts and labels; images are not kept.
    def counted(data, record):
        read.append(record)
        return whole(data, record)

    read, whole = [], BaseDataSource.__getitem__
    monkeypatch.setattr(BaseDataSource, "__getitem__", counted)
    assert source.column("label") == [0, 1] * 5 and source.column("label") and not read
    assert source.column("image") and source.column("image") and len(read) == 20
    monkeypatch.setattr(records, "KEPT", 12)  # of texts so large only class numbers are kept
    large = open_source("tfds:sentiment:train", data_dir=tfds_dir)
    assert large.column("label") == [0, 1] * 5 and len(read) == 30
    assert large.column("sentence") == source.column("sentence") and len(read) == 40
    part = open_source("tfds:sentiment:1.2.0:train[:50%]", data_dir=tfds_dir)
    assert part.column("label") == [0, 1, 0, 1, 0]


def test_tfds_never_downloads_and_says_what_is_there(tfds_dir):
    with pytest.raises(ValueError, match="not prepared in .*nothing is downloaded"):
        open_source("tfds:glue/sst2:train", data_dir=tfds_dir)
    with pytest.raises(ValueError, match="did you mean 'sentiment'"):
        open_source("tfds:sentimnt:train", data_dir=tfds_dir)
    with pytest.raises(ValueError, match="prepared versions: 1.2.0"):
        open_source("tfds:sentiment:1.0.0:train", data_dir=tfds_dir)
    with pytest.raises(ValueError, match=r"dev.*\(splits: .*train"):
        open_source("tfds:sentiment:dev", data_dir=tfds_dir)
    with pytest.raises(ValueError, match="write tfds:NAME:SPLIT"):
        open_source(f"{tfds_dir}/sentiment/1.2.0")


@pytest.fixture
def without_random_access(tfds_dir, tmp_path):
    """The same dataset as it says of itself where it is TFRecord; its records are not."""
    folder = Path(shutil.copytree(tfds_dir, tmp_path / "tfds")) / "sentiment" / "1.2.0"
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    for path in folder.glob("*.array_record*"):
        path.rename(path.with_name(path.name.replace("array_record", "tfrecord")))
    return folder


def test_tfrecord_without_tensorflow_is_one_line_and_leaves_nothing(
    without_random_access, tmp_path, monkeypatch
):
    from jaxft.data import tfds_copy

    monkeypatch.setattr(tfds_copy.importlib.util, "find_spec", lambda name: None)
    where = {"data_dir": str(tmp_path / "tfds"), "cache": str(tmp_path / "cache")}
    with pytest.raises(
        ValueError, match="is prepared as tfrecord, which tensorflow alone reads: pip"
    ):
        open_source("tfds:sentiment:train", **where)
    with pytest.raises(ValueError, match=r"Unknown split 'dev'.*\(splits: .*train"):
        open_source("tfds:sentiment:dev", **where)
    assert not (tmp_path / "cache").exists()


# In a process of its own, as tensorflow warns when it is imported.
AS_TFRECORD = """
import sys
from pathlib import Path
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tensorflow_datasets.core.file_adapters import TfRecordFileAdapter
for path in sys.argv[2:]:
    there = Path(sys.argv[1]) / Path(path).name.replace("tfrecord", "array_record")
    records = ArrayRecordDataSource([str(there)])
    TfRecordFileAdapter.write_examples(path, enumerate(records[i] for i in range(len(records))))
"""


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="needs tensorflow")
def test_tfrecord_is_copied_once_where_tensorflow_is(
    tfds_dir, without_random_access, tmp_path, monkeypatch
):
    shards = sorted(without_random_access.glob("*.tfrecord*"))
    here = Path(tfds_dir) / "sentiment" / "1.2.0"
    command = [sys.executable, "-c", AS_TFRECORD, str(here), *map(str, shards)]
    subprocess.run(command, check=True)
    where = {"data_dir": str(tmp_path / "tfds"), "cache": str(tmp_path / "cache")}
    for split in ("train[20%:]", "train", "test+train"):
        found = open_source(f"tfds:sentiment:{split}", **where)
        there = open_source(f"tfds:sentiment:{split}", data_dir=tfds_dir)
        assert found.class_names == there.class_names and len(found) == len(there)
        for column in there.columns:
            assert found.column(column) == there.column(column)
        assert bool(found.notes) == (split != "train")  # whose shard was there by then
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert len(open_source("tfds:sentiment:train", **where)) == 10

    monkeypatch.undo()
    whole = shards[0].read_bytes()
    for cut, said in (
        (len(whole) - 5, "sentiment-test.*(truncated|DataLoss)"),
        (0, "holds 0 records"),
    ):
        shards[0].write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=f"tfds:sentiment:test: cannot be copied .*{said}"):
            open_source("tfds:sentiment:test", **where)
    assert not list((tmp_path / "cache").rglob("*.tmp"))


# The digits


def test_digits_are_split_by_class_without_overlap():
    train, test = open_source("sklearn:digits:train"), open_source("sklearn:digits:test")
    assert len(train) + len(test) == 1797
    images = np.concatenate([train.column("image"), test.column("image")])
    assert images.dtype == np.uint8 and images.shape[1:] == (8, 8)
    assert set(np.unique(images)) == {round(value * 255 / 16) for value in range(17)}
    for source, share in ((train, 0.8), (test, 0.2)):
        counts = np.bincount(source.column("label"))
        assert len(counts) == 10 and abs(counts / 1797 * 10 - share).max() < 0.03
    with pytest.raises(ValueError, match="there are sklearn:digits:train and sklearn:digits:test"):
        open_source("sklearn:digits:dev")


def test_images_of_a_saved_dataset_stay_encoded(tmp_path):
    """Or `datasets` would decode them, with formats of Pillow that start other programs."""
    datasets = pytest.importorskip("datasets")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n"
    columns = {"image": [{"bytes": postscript, "path": None}] * 2, "label": [0, 1]}
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    data = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    data.save_to_disk(str(tmp_path / "saved"))
    assert open_source(str(tmp_path / "saved"))[0]["image"]["bytes"] == postscript
