"""A stream gives every row once a pass, goes on from any block's end, and says what it cannot read."""

import csv
import dataclasses
import gzip
import json

import datasets
import pytest

from jaxft.data.stream import Position, handed_stream, open_stream

ROWS = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(25)]

# `datasets` leaves a table that is read in part to be closed by the collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def shards(tmp_path):
    for shard in range(3):
        part = ROWS[shard * 9 : (shard + 1) * 9]
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (tmp_path / f"part-{shard}.jsonl").write_text(lines)
    return str(tmp_path / "part-*.jsonl")


def blocks(stream, count):
    found, position = [], Position()
    for _ in range(count):
        source, position = stream.read(position)
        found.append(source.column("text"))
    return found, position


def test_blocks_are_the_rows_in_their_order_pass_after_pass(shards):
    texts = [row["text"] for row in ROWS]
    found, position = blocks(open_stream(shards, 10), 4)
    assert found == [texts[:10], texts[10:20], texts[20:], texts[:10]]
    assert (position.epoch, position.row) == (1, 10)
    # Where a block ends with the pass, the next one begins the next pass.
    found, position = blocks(open_stream(shards, 5), 6)
    assert found[4:] == [texts[20:], texts[:5]] and position.epoch == 1


def test_every_position_is_one_to_go_on_from_in_another_process(shards):
    stream, position = open_stream(shards, 4), Position()
    for _ in range(9):
        source, after = stream.read(position)
        saved = json.loads(json.dumps(dataclasses.asdict(position)))
        again, then = open_stream(shards, 4).read(Position(**saved))
        assert again.column("text") == source.column("text")
        assert (then.epoch, then.row) == (after.epoch, after.row)
        position = after


@pytest.mark.parametrize(("name", "opened"), [("a.tsv", open), ("A.TSV.gz", gzip.open)])
def test_a_table_keeps_its_cells_as_texts(tmp_path, name, opened):
    path = tmp_path / name
    with opened(path, "wt") as file:
        csv.writer(file, delimiter="\t").writerows([("text", "label"), ("007", "1"), ("NA", "0")])
    source, _ = open_stream(str(path), 10).read(Position())
    assert source.column("text") == ["007", "NA"] and source.column("label") == ["1", "0"]


def test_of_an_iterable_dataset_with_class_numbers(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = {"text": list("abcdef"), "label": [0, 1] * 3}
    data = datasets.Dataset.from_dict(rows, features).to_iterable_dataset(num_shards=2)
    stream = handed_stream("mine", data, 4)
    found, _ = blocks(stream, 3)
    assert found == [list("abcd"), list("ef"), list("abcd")]
    source, _ = stream.read(Position())
    assert source.class_names == {"label": ("no", "yes")}
    assert source.where(2) == "mine, row 3"


def test_what_cannot_be_streamed(tmp_path, shards):
    (tmp_path / "a.csv").write_text("text,label\nx,1\n")
    (tmp_path / "a.xlsx").write_text("")
    (tmp_path / "semicolons.csv").write_text("text;label\nx;1\n")
    (tmp_path / "a.tsv").write_text("text\tlabel\nx\t1\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n{"text": \n')
    for spec, said in {
        f"{tmp_path}/a.csv,{shards}": "files of one kind",
        f"{tmp_path}/a.csv,{tmp_path}/a.tsv": "files of one kind",
        f"{tmp_path}/semicolons.csv": "'text;label' is not separated by ','; name what separates",
        f"{tmp_path}/a.xlsx": "'.xlsx' cannot be streamed",
        f"{tmp_path}/b.csv": "no such file or folder",
        f"{tmp_path}/*.txt": "no file has such a name",
        str(tmp_path): "is a folder, which has random access",
        f"{shards}[:80%]": "is a part, which has random access",
        "tfds:imdb_reviews:train": "^tfds:imdb_reviews:train has random access",
        f"{shards},": "names nothing between two commas",
        "hf:name": "a hub dataset is named",
    }.items():
        with pytest.raises(ValueError, match=said):
            open_stream(spec, 4)
    for name in ("empty.jsonl", "bad.jsonl"):
        with pytest.raises(ValueError, match="stream") as error:
            open_stream(str(tmp_path / name), 4).read(Position())
        assert "\n" not in str(error.value) and name in str(error.value)
    with pytest.raises(ValueError, match="list, which has random access"):
        handed_stream("data", ROWS, 4)


def test_a_compressed_file(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS)
    source, _ = open_stream(str(tmp_path / "a.jsonl.gz"), 30).read(Position())
    assert source.column("text") == [row["text"] for row in ROWS]
