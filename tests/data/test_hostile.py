"""Data as it should not be: each case ends at once, in one line that names the file, and the row if any."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from jaxft.config import default_config, from_json, to_json
from jaxft.data.sources import open_source
from jaxft.experiment.data import open_splits
from jaxft.experiment.split import hold_out, labelled_split
from jaxft.tasks.contract import Reading
from jaxft.tasks.table import TASKS

TEXT = TASKS["text_classification"]

GOOD = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(8)]


def jsonl(*rows: str) -> bytes:
    """Four good lines, then these."""
    return "\n".join([*map(json.dumps, GOOD[:4]), *rows, ""]).encode("utf-8", "surrogatepass")


def parquet(path: Path, data: pyarrow.Table | None = None, huggingface=None, **options) -> None:
    data = pyarrow.Table.from_pylist(GOOD) if data is None else data
    if huggingface is not None:
        data = data.replace_schema_metadata({b"huggingface": huggingface})
    pyarrow.parquet.write_table(data, path, **options)


def cut(path: Path, keep: float) -> None:
    parquet(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def arrow_cut(path: Path) -> None:
    """A stream of which the last batch is cut."""
    data = pyarrow.Table.from_pylist(GOOD)
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, data.schema) as out:
        out.write_table(data)
    path.write_bytes(path.read_bytes()[:-60])


def encrypted(path: Path) -> None:
    """Only the first and last bytes: what a reader without the key looks at."""
    path.write_bytes(b"PARE" + b"\0" * 64 + (16).to_bytes(4, "little") + b"PARE")


def listens(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def two_images(folder: Path) -> Path:
    for name in ("x", "y"):
        (folder / name).mkdir(parents=True)
        Image.new("L", (2, 2)).save(folder / name / "a.png")
    return folder


def table(**columns) -> pyarrow.Table:
    return pyarrow.table({"text": ["a", "b"], "label": ["x", "y"], **columns})


NESTED = '{"text": ' + "[" * 100_000 + "]" * 100_000 + ', "label": "a"}'
HEADER = b"text,label\na,x\nb,y\nc,x\nd,y\n"
# name of the file -> what is in it (bytes, or what makes it), and what the line must say.
CASES = {
    # What is no regular file is not opened.
    "pipe.csv": (os.mkfifo, "pipe.csv: a pipe"),
    "pipe.parquet": (os.mkfifo, "pipe.parquet: a pipe"),
    "socket.csv": (listens, "socket.csv: a socket"),
    "zero.csv": (lambda p: p.symlink_to("/dev/zero"), "zero.csv: a device"),
    "nowhere.csv": (
        lambda p: p.symlink_to("gone"),
        "a symbolic link to 'gone', which is not there",
    ),
    "loop.csv": (lambda p: p.symlink_to(p), "loop.csv: a symbolic link"),
    "folder.csv": (lambda p: p.mkdir(), "folder.csv: not an image folder"),
    "stdin": (lambda p: p.symlink_to("/dev/zero"), "stdin: a device"),
    # Encodings.
    "utf16.csv": ("text,label\na,b\n".encode("utf-16"), "utf16.csv: the file is UTF-16"),
    "utf32.csv": ("text,label\na,b\n".encode("utf-32"), "utf32.csv: the file is UTF-32"),
    "utf16.jsonl": (jsonl().decode().encode("utf-16"), "utf16.jsonl, line 1: byte 0xff"),
    "bare16.csv": ("text,label\na,b\n".encode("utf-16-le"), "bare16.csv, line 1: a NUL byte"),
    "nul.csv": (HEADER + b"e\0,x\n", "nul.csv, line 6: a NUL byte"),
    "nul.tsv": (HEADER.replace(b",", b"\t") + b"e\0\tx\n", "nul.tsv, line 6: a NUL byte"),
    "latin.tsv": (b"text\tlabel\na\tx\n\xe9\ty\n", "latin.tsv, line 3: byte 0xe9"),
    # Tables as text.
    "unclosed.csv": (HEADER + b'"e,x\nf,y\n', "unclosed.csv, line 6: bad quoting"),
    "after.csv": (HEADER + b'"e" f,x\n', "after.csv, line 6: bad quoting"),
    "ragged.tsv": (b'text\tlabel\n"a\tx\nb\n', "ragged.tsv, line 3: 1 fields"),
    "unclear.csv": (b"text;label\na;x\nb\n", "'text;label' is not separated by ','"),
    "blank.csv": (b"\n\n\n", "blank.csv: the file is empty"),
    # JSON.
    "nested.jsonl": (jsonl(NESTED), "nested.jsonl, line 5: the JSON is nested too deeply"),
    "huge.jsonl": (jsonl('{"text": "a", "label": ' + "9" * 5000 + "}"), "huge.jsonl, line 5: "),
    "twice.jsonl": (jsonl('{"text": "a", "text": "b"}'), "line 5: the object has 'text' more than"),
    "half.jsonl": (
        jsonl('{"text": "\\ud800 x", "label": "a"}'),
        "half.jsonl, line 5: column 'text'",
    ),
    "half_label.jsonl": (jsonl('{"text": "x", "label": "\\udfff"}'), "line 5: column 'label'"),
    "half_key.jsonl": (jsonl('{"\\ud800": "x"}'), r"half_key.jsonl, line 5: the key '\\ud800'"),
    "nan.jsonl": (jsonl('{"text": NaN, "label": "a"}'), "nan.jsonl, line 5: column 'text' has no"),
    "nan_label.jsonl": (
        jsonl('{"text": "x", "label": NaN}'),
        "line 5: column 'label' has no label",
    ),
    "null.jsonl": (
        jsonl('{"text": null, "label": "a"}'),
        "null.jsonl, line 5: column 'text' has no",
    ),
    "lists.jsonl": (jsonl('{"text": ["x"], "label": "a"}'), "lists.jsonl, line 5: column 'text'"),
    "multi.jsonl": (jsonl('{"text": "x", "label": ["a", "b"]}'), "multi.jsonl, line 5: .*lists"),
    "object.jsonl": (jsonl('{"text": "x", "label": {"a": 1}}'), "object.jsonl, line 5: "),
    "number.jsonl": (jsonl("17"), "number.jsonl, line 5: a int, where each row"),
    "string.jsonl": (jsonl('"x'), "string.jsonl, line 5: not JSON"),
    "keys.jsonl": (b"{}\n{}\n", "keys.jsonl: the objects have no keys"),
    "empty.json": (b" ", "empty.json: the file is empty"),
    "none.json": (b"[]", "none.json: the list is empty"),
    "word.json": (b"hello", "word.json: the file begins with 'hello'; a JSON file holds a list"),
    "cut.json": (
        b'[{"text": "a", "label": "b"},\n{"text": "c',
        r"cut.json, line 2 \(row 2\): not JSON",
    ),
    "comma.json": (
        b'[{"text": "a"} {"text": "b"}]',
        "comma.json, line 1: after row 1 the list goes on",
    ),
    "open.json": (b'[{"text": "a"}', "open.json, line 1: after row 1 the list ends, where"),
    "behind.json": (
        b'[{"text": "a"}] x',
        "behind.json: behind the list the file goes on with 'x'",
    ),
    "trailing.json": (b'[{"text": "a"},]', r"trailing.json, line 1 \(row 2\): not JSON"),
    "numbers.json": (b"[1, 2]", "numbers.json, line 1: a int, where each row"),
    "twice.json": (
        b'[{"text": "a", "text": "b"}]',
        "twice.json, row 1: the object has 'text' more",
    ),
    "nested.json": (f"[{NESTED}]".encode(), "nested.json, row 1: the JSON is nested too deeply"),
    "nested_object.json": (NESTED.encode(), "nested_object.json: the JSON is nested too deeply"),
    "keys.json": (b"[{}, {}]", "keys.json: the objects have no keys"),
    "latin.json": (
        b'[{"text": "a"},\n{"text": "\xe9"}]',
        "latin.json, line 2: byte 0xe9 is not UTF-8",
    ),
    "utf16.json": ("[]".encode("utf-16"), "utf16.json: the file is UTF-16"),
    "several.json": (
        b'{"train": [{"text": "a"}], "test": [{"text": "b"}]}',
        r"several.json: the object has several lists of objects \('train', 'test'\)",
    ),
    "ragged.json": (
        b'{"text": ["a", "b"], "label": ["x"]}',
        "ragged.json: an object of 'text', 'label'",
    ),
    "single.json": (
        b'{"text": "a", "label": "x"}',
        "single.json: an object of 'text', 'label'; a JSON",
    ),
    "squad.json": (
        b'{"data": [{"title": "T", "paragraphs": [{"context": "c"}]}]}',
        "squad.json, article 1, paragraph 1: has no 'qas'",
    ),
    "asked.json": (
        b'{"data": [{"paragraphs": [{"context": "c", "qas": []}]}]}',
        "asked.json: the articles have no questions",
    ),
    # Text.
    "blank.txt": (b"\n \n\t\n", "blank.txt: the file is empty"),
    "latin.txt": (b"a\nb\xe9\n", "latin.txt, line 2: byte 0xe9"),
    "utf16.txt": ("a".encode("utf-16"), "utf16.txt: the file is UTF-16"),
    "nul.txt": (b"a\nb\0\n", "nul.txt, line 2: a NUL byte"),
    # Arrow, and what is packed.
    "nothing.arrow": (b"", "nothing.arrow: not a readable Arrow file"),
    "words.feather": (b"what is this" * 99, "words.feather: not a readable Arrow file"),
    "old.feather": (b"FEA1" + b"\0" * 99, "old.feather: .*Feather files of version 1 are not read"),
    "cut.arrow": (arrow_cut, "cut.arrow: not a readable Arrow file"),
    "pipe.csv.gz": (os.mkfifo, "pipe.csv.gz: a pipe"),
    "cut.csv.gz": (
        gzip.compress(HEADER)[:-9],
        "cut.csv.gz: damaged, or not compressed as its name",
    ),
    "plain.csv.zst": (HEADER, "plain.csv.zst: damaged, or not compressed as its name"),
    "a.tar.gz": (gzip.compress(HEADER), "a.tar.gz: an archive of several files"),
    "a.zip": (b"PK", "a.zip: an archive of several files"),
    "a.xlsx.gz": (gzip.compress(HEADER), "a.xlsx: unknown kind of file '.xlsx'"),
    "inner.csv.gz": (gzip.compress(HEADER + b"e\n"), "inner.csv, line 6: 1 fields"),
    # Parquet.
    "cut.parquet": (lambda p: cut(p, 0.7), "cut.parquet: not a readable Parquet file"),
    "head.parquet": (lambda p: cut(p, 0.01), "head.parquet: not a readable Parquet file"),
    "nothing.parquet": (b"", "nothing.parquet: not a readable Parquet file"),
    "encrypted.parquet": (encrypted, "encrypted.parquet: not a readable Parquet file"),
    "no_columns.parquet": (lambda p: parquet(p, pyarrow.table({})), "the file has no columns"),
    "no_rows.parquet": (lambda p: parquet(p, table().slice(0, 0)), "the file has no rows"),
    "repeated.parquet": (
        lambda p: parquet(p, pyarrow.Table.from_arrays([["a"], ["b"]], ["text", "text"])),
        "repeated.parquet: there are several columns called 'text'",
    ),
    "nested.parquet": (
        lambda p: parquet(p, table(text=[["a"], ["b"]])),
        "nested.parquet, row 1: column 'text' has no text",
    ),
    "structs.parquet": (
        lambda p: parquet(p, table(label=[{"a": 1}, {"a": 2}])),
        "structs.parquet, row 1: column 'label' holds",
    ),
    "binary.parquet": (
        lambda p: parquet(p, table(text=[b"a", b"\xff\xfe"])),
        "binary.parquet, row 2: column 'text' holds byte 0xff",
    ),
    "regression.parquet": (
        lambda p: parquet(p, table(label=[0.5, 1.25])),
        "regression.parquet: column 'label' holds numbers that are not whole",
    ),
    "class_numbers.parquet": (
        lambda p: parquet(
            p,
            table(label=[0, 7]),
            json.dumps(
                {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}}}
            ),
        ),
        r"class_numbers.parquet, row 2: column 'label' has no label \(7\)",
    ),
    # Folders.
    "empty": (lambda p: p.mkdir(), "empty: not an image folder"),
    "saved": (
        lambda p: (p.mkdir(), (p / "state.json").write_text("[]")),
        "saved: not a readable saved dataset",
    ),
    "saved_pipe": (lambda p: (p.mkdir(), os.mkfifo(p / "state.json")), "state.json: a pipe"),
    "tfds": (
        lambda p: (p.mkdir(), (p / "features.json").write_text("[" * 100_000)),
        "tfds: not a readable TFDS dataset",
    ),
    "image_pipe": (lambda p: os.mkfifo(two_images(p) / "x" / "b.png"), "x/b.png: a pipe"),
    "image_gone": (
        lambda p: (two_images(p) / "x" / "b.png").symlink_to("gone.png"),
        "x/b.png: a symbolic link to 'gone.png'",
    ),
    "\udcff.csv": (HEADER, r"\\xff.csv: the name of this file or folder is not UTF-8"),
    "\udcff": (lambda p: p.mkdir(), r"\\xff: the name of this file or folder is not UTF-8"),
    "class": (
        lambda p: two_images(p).joinpath("x").rename(p / "\udcff"),
        r"class/\\xff/a.png: the name of this file",
    ),
    "single.png": (lambda p: Image.new("L", (2, 2)).save(p), "single.png: a single image has no"),
}


@pytest.fixture(autouse=True)
def no_hang():
    """A read that waits for ever ends in an error, not in a test that never ends."""

    def stop(number, frame):
        raise AssertionError("still waiting after a minute")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def place(path: Path, content) -> str:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    return str(path)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def splits(inputs: str = "text", **fields):
    config = default_config()
    config.data.update(fields)
    return open_splits(config, TASKS[f"{inputs}_classification"], ())


@pytest.mark.parametrize("name", CASES, ids=ascii)
def test_hostile_data_is_one_line(tmp_path, name):
    content, said = CASES[name]
    path = place(tmp_path / name, content)
    inputs = "image" if Path(path).is_dir() else "text"
    with pytest.raises(ValueError, match=said) as error:
        splits(inputs, train=path)
    message = str(error.value)
    assert type(error.value) is ValueError and "\n" not in message and len(message) < 600
    message.encode("utf-8")  # can be printed, and written to a file


@pytest.mark.parametrize(
    "spec", ["a\0b.csv", "x" * 300 + ".csv", "~nobody-here/a.csv", "/dev/stdin"]
)
def test_hostile_names_are_one_line(spec):
    with pytest.raises(ValueError) as error:
        splits(train=spec)
    assert type(error.value) is ValueError and "\n" not in str(error.value)


METADATA = [
    b"\xff", b"[" * 100_000, b"[]", b"null", b"7", b'"x"', b'{"info": null}', b'{"info": []}',
    b'{"info": {"features": [1, 2]}}', b'{"info": {"features": {"label": null}}}',
    b'{"info": {"features": {"label": {"_type": "ClassLabel"}}}}',
    b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": [1, 2]}}}}',
    b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": "ab"}}}}',
    b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "a"]}}}}',
    b'{"info": {"features": {"gone": {"_type": "ClassLabel", "names": ["a", "b"]}}}}',
    b'{"info": {"features": {"label": {"_type": ["ClassLabel"], "names": ["a", "b"]}}}}',
]  # fmt: skip


@pytest.mark.parametrize("metadata", METADATA)
def test_metadata_of_another_shape_is_passed_over(tmp_path, metadata):
    parquet(tmp_path / "a.parquet", huggingface=metadata)
    source = open_source(str(tmp_path / "a.parquet"))
    assert source.class_names == {} and len(splits(train=str(tmp_path / "a.parquet")).names) == 2


BAD_SPLITS = {
    "no text column": (
        b"txt,label\na,x\n",
        "a.csv has no column 'text'; its columns are txt, label",
    ),
    "no label column": (b"text,lable\na,x\n", "no label column found among 'text', 'lable'"),
    "unknown labels": (
        b"text,label\na,x\nb,z\nc,w\n",
        "a.csv, line 3: the label 'z' .*'w': 2 rows",
    ),
    "no label": (b"text,label\na,x\nb,\n", "a.csv, line 3: column 'label' has no label"),
    "no rows": (b"text,label\n", "a.csv: there are no rows"),
}


@pytest.mark.parametrize("split", ["eval", "test"])
@pytest.mark.parametrize("mistake", BAD_SPLITS)
def test_every_split_is_checked_at_the_start_and_named(tmp_path, split, mistake):
    content, said = BAD_SPLITS[mistake]
    train, other = place(tmp_path / "t.csv", HEADER), place(tmp_path / "a.csv", content)
    with pytest.raises(ValueError, match=f"^config.data.{split}: .*{said}") as error:
        splits(train=train, **{split: other})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("split", ["eval", "test"])
def test_a_value_that_is_no_text_is_found_in_every_split(tmp_path, split):
    train = place(tmp_path / "t.csv", HEADER.replace(b",x", b",a").replace(b",y", b",b"))
    rows = (
        '{"text": null, "label": "a"}',
        '{"text": "", "label": "b"}',
        '{"text": [], "label": "a"}',
    )
    other = place(tmp_path / "a.jsonl", jsonl(*rows))
    said = f"^config.data.{split}: a.jsonl, line 5: column 'text' has no text .None.; 2 rows in all"
    with pytest.raises(
        ValueError, match=rf"{said} \(lines 5, 7\): mend them, or .*on_bad_row='skip'"
    ):
        splits(train=train, **{split: other})
    found = splits(train=train, on_bad_row="skip", **{split: other})
    assert getattr(found, split).targets.rows.tolist() == [0, 1, 2, 3, 5]
    assert "a.jsonl: 2 rows without usable text left out (lines 5, 7)" in found.notes
    assert "a.jsonl: 1 row with an empty text, used as they are (line 6)" in found.notes


def test_bad_rows_of_the_training_data_are_left_out_on_request(tmp_path):
    content = b"text,label\n" + b"a,x\nb,y\n" * 10 + b"c,\n ,x\nd, \n"
    path = place(tmp_path / "t.csv", content)
    with pytest.raises(ValueError, match=r"line 22: .*2 rows are like this \(lines 22, 24\)"):
        splits(train=path)
    found = splits(train=path, on_bad_row="skip")
    used = sorted([*found.train.targets.rows, *found.eval.targets.rows])
    assert used == [*range(20), 21]
    assert "t.csv: 2 rows without label left out (lines 22, 24)" in found.notes
    assert "t.csv: 1 row with an empty text, used as they are (line 23)" in found.notes


def test_images_that_are_not_there_are_found_at_the_start(tmp_path):
    folder = two_images(tmp_path / "images")
    good = [str(folder / name / "a.png") for name in ("x", "y")]
    os.mkfifo(tmp_path / "pipe.png")
    paths = [*good, *good, str(tmp_path / "gone.png"), str(tmp_path / "pipe.png"), ""]
    rows = "".join(f"{path},{'ab'[i % 2]}\n" for i, path in enumerate(paths))
    train = place(tmp_path / "t.csv", f"image,label\n{rows}".encode())
    with pytest.raises(
        ValueError, match=r"t.csv, line 6: .*gone.png.*; 3 rows in all \(lines 6, 7, 8\)"
    ):
        splits("image", train=train)
    found = splits("image", train=train, on_bad_row="skip")
    assert len(found.train.targets) + len(found.eval.targets) == 4
    # An image folder names the file itself.
    assert found.train.source.where(0) == "t.csv, line 2"
    assert open_source(str(tmp_path / "images")).where(1) == good[1]


def test_columns_may_have_any_names(tmp_path):
    names = (
        "label names,columns,index,predicted,probability_a,image,weight,input_ids,rows,,text,label"
    )
    rows = "".join(f"{','.join('pqrstuvwxz')},text {i},{'ab'[i % 2]}\n" for i in range(8))
    path = place(tmp_path / "t.csv", f"{names}\n{rows}".encode())
    found = splits(train=path, eval=path, test=path)
    assert found.columns == ("text",) and found.names == ("a", "b") and len(found.test.targets) == 8


def test_the_label_is_no_input(tmp_path):
    train = place(tmp_path / "t.csv", HEADER)
    for fields in ({"text": ("label",)}, {"text": ("text", "label")}):
        with pytest.raises(ValueError, match="t.csv: column '.*' is the input and the label"):
            splits(train=train, **fields)


def test_ten_thousand_labels_do_not_hang(tmp_path):
    rows = "".join(f"text {i},name {i % 10_000}\n" for i in range(20_000))
    train = place(tmp_path / "t.csv", f"text,label\n{rows}".encode())
    found = splits(train=train)
    assert len(found.names) == 10_000 and len(found.eval.targets) == 2000
    other = place(tmp_path / "e.csv", b"text,label\na,nam 17\n")
    with pytest.raises(ValueError, match=r"'nam 17' is unknown; .*… \(10000 in all\)$"):
        splits(train=train, eval=other)


def test_the_split_follows_its_own_seed_and_says_what_it_did(tmp_path):
    rows = "".join(f"text {i},{i // 3:03}\n" for i in range(1500))
    train = place(tmp_path / "t.csv", f"text,label\n{rows}".encode())
    config = default_config()
    config.data.train = train
    held = {}
    for name, seed, split_seed in (("one", 0, 0), ("other seed", 1, 0), ("other split", 0, 1)):
        config.train.seed, config.data.split_seed = seed, split_seed
        found = open_splits(config, TEXT, ())
        held[name] = found.eval.targets.rows.tolist()
    assert held["one"] == held["other seed"] != held["other split"]
    assert (
        "150 of 1500 training rows (10.0%, of each label alike; 350 of the 500" in found.notes[-1]
    )
    config.data.examples_per_class = 1
    few = [open_splits(config, TEXT, ()).train.targets.rows.tolist()]
    config.train.seed = 5
    few.append(open_splits(config, TEXT, ()).train.targets.rows.tolist())
    config.data.split_seed = 0
    few.append(open_splits(config, TEXT, ()).train.targets.rows.tolist())
    assert few[0] == few[1] != few[2]


def test_a_run_from_before_the_split_had_a_seed_keeps_its_rows():
    old = to_json(default_config())
    old["train"]["seed"] = 7
    assert from_json(old).data.split_seed == 0
    del old["data"]["split_seed"]
    assert from_json(old).data.split_seed == 7


def test_the_rows_that_were_held_out_are_found_again(tmp_path):
    content = b"text,label\n" + b"a,x\nb,y\nc,\n" * 20
    train = place(tmp_path / "t.csv", content)
    data = default_config().data
    data.update(train=train, on_bad_row="skip", split_seed=3)
    found = splits(train=train, on_bad_row="skip", split_seed=3)
    again, _ = labelled_split(
        TEXT, open_source(train), "label", found.columns, Reading(names=found.names, drop=True)
    )
    held = hold_out(again, data)[1].targets
    assert held.rows.tolist() == found.eval.targets.rows.tolist() and len(held) == 4
    assert held.ids.tolist() == found.eval.targets.ids.tolist()


def test_evaluation_data_is_read_by_the_label_column_of_the_training_data(tmp_path):
    train = place(tmp_path / "t.csv", HEADER.replace(b"label", b"topic"))
    other = place(tmp_path / "e.csv", b"text,label,topic\na,1,x\nb,2,y\n")
    assert splits(train=train, eval=other, label="topic").eval.targets.ids.tolist() == [0, 1]
    train = place(tmp_path / "t.csv", HEADER.replace(b"label", b"sentiment"))
    other = place(tmp_path / "e.csv", b"text,category,sentiment\na,1,x\nb,2,y\n")
    assert splits(train=train, eval=other).eval.targets.ids.tolist() == [0, 1]
    # One with another usual name is found by that.
    other = place(tmp_path / "e.csv", b"text,category\na,x\nb,y\n")
    assert splits(train=train, eval=other).eval.targets.ids.tolist() == [0, 1]


def test_the_labels_of_a_checkpoint_keep_their_order(tmp_path):
    config = default_config()
    config.data.train = place(tmp_path / "t.csv", HEADER)
    plain, ordered = open_splits(config, TEXT, ()), open_splits(config, TEXT, ("y", "x"))
    assert (plain.names, ordered.names) == (("x", "y"), ("y", "x"))
    assert [ordered.names[i] for i in ordered.train.targets.ids] == [
        "xyxy"[row] for row in ordered.train.targets.rows
    ]
