"""Files larger than memory: the same rows in any order, a few at a time, from where each begins."""

import csv
import json
import os
import tracemalloc

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from jaxft.data import arrow, files, records
from jaxft.data.checks import check_inputs, text_fault
from jaxft.data.labels import read_labels
from jaxft.data.sources import open_source

ROWS = [
    {"text": text, "label": "ab"[i % 2]}
    for i, text in enumerate(
        [
            "plain",
            'a "quoted", text\nover\r\ntwo lines\r',
            "ünïcödé 中文 😀",
            "",
            "x" * 50,
            ",",
            "\t;",
        ]
        * 5
    )
]


def write_csv(path, dialect="excel", end="\r\n", mark=""):
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(mark)
        writer = csv.DictWriter(
            file, ("text", "label"), lineterminator=end, dialect=dialect, quoting=csv.QUOTE_ALL
        )
        writer.writeheader()
        for i, row in enumerate(ROWS):
            writer.writerow(row)
            file.write(end * (i % 3 == 0))  # blank lines are no rows
    path.write_bytes(path.read_bytes().rstrip())  # and the last line has no end


def write_jsonl(path):
    lines = [
        json.dumps(row, ensure_ascii=False) + "\r\n" * (1 + i % 2) for i, row in enumerate(ROWS)
    ]
    path.write_text("".join(lines).rstrip(), "utf-8", newline="")


def write_parquet(path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=4)


FILES = {
    "a.csv": write_csv,
    "old_mac.csv": lambda path: write_csv(path, end="\r"),
    "marked.csv": lambda path: write_csv(path, mark="\ufeff"),
    "a.tsv": lambda path: write_csv(path, "excel-tab"),
    "a.jsonl": write_jsonl,
    "a.parquet": write_parquet,
}


@pytest.fixture(params=["small", "large"])
def size(request, monkeypatch):
    """'large' treats every file as one that is not kept, and reads a few bytes of it at a time."""
    monkeypatch.setattr(files, "CHUNK", 6)
    if request.param == "large":
        monkeypatch.setattr(records, "KEPT", 0)
        monkeypatch.setattr(records, "_BLOCK", 7)
        monkeypatch.setattr(records, "_GAP", 20)
        monkeypatch.setattr(arrow, "KEPT", 0)
    return request.param


@pytest.mark.parametrize("name", FILES)
def test_any_rows_are_read_in_any_order(tmp_path, size, name):
    FILES[name](tmp_path / name)
    source = open_source(str(tmp_path / name))
    assert source.columns == ("text", "label") and len(source) == len(ROWS)
    shuffled = np.random.default_rng(0).permutation(len(ROWS))
    for chosen in (np.arange(len(ROWS)), np.arange(0, len(ROWS), 3), shuffled, np.array([4, 4, 3])):
        found = [
            dict(zip(("label", "text"), values, strict=True))
            for rows, columns in source.chunks(("label", "text"), chosen)
            for values in zip(*columns, strict=True)
        ]
        assert found == [ROWS[row] for row in chosen]
    assert [len(rows) for rows, _ in source.chunks(("text",))] == [6, 6, 6, 6, 6, 5]
    assert source[7] == ROWS[7] and source.column("text") == [row["text"] for row in ROWS]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_are_counted_where_rows_span_them(tmp_path, size, end):
    path = tmp_path / "a.csv"
    path.write_text(f'text,label{end}a,x{end}{end}"b{end}c",y{end}d,z', newline="")
    source = open_source(str(path))
    assert list(source.lines) == [2, 4, 6] and source.where(2) == "a.csv, line 6"
    path.write_text(f"text,label{end}a,x{end}b,y{end}", newline="")
    assert open_source(str(path)).lines == range(2, 4)


@pytest.mark.parametrize("change", ["longer", "shorter", "touched"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_a_file_that_changes_while_it_is_in_use_is_not_misread(tmp_path, size, name, change):
    path = tmp_path / name
    FILES[name](path)
    source = open_source(str(path))
    os.utime(path, ns=(0, 0))
    if change != "touched":
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2 if change == "shorter" else 10_000)
    if size == "small":  # it is in memory
        assert source[30] == ROWS[30]
    else:
        with pytest.raises(ValueError, match=f"^{name}: the file was changed while it was in use$"):
            source[30]
    os.replace(path, tmp_path / "moved")
    FILES[name](path)  # another file of its name is not the one that is open
    assert open_source(str(path))[30] == ROWS[30]


def test_a_column_of_parquet_that_is_damaged_is_named(tmp_path, size):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(ROWS), path, compression="zstd", use_dictionary=False
    )
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="^a.parquet: column 'text' cannot be read") as error:
        open_source(str(path)).column("text")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
def test_opening_checking_and_labels_hold_a_few_bytes_a_row(tmp_path, monkeypatch, name):
    """As Python objects the rows would be over 200 bytes each."""
    count = 30_000
    texts, labels = (
        [f"a text of some forty characters {i:8}" for i in range(count)],
        ["x", "y"] * (count // 2),
    )
    path = tmp_path / name
    if name == "a.parquet":
        pyarrow.parquet.write_table(
            pyarrow.table({"text": texts, "label": labels}), path, row_group_size=1000
        )
    elif name == "a.jsonl":
        rows = zip(texts, labels, strict=True)
        path.write_text("".join(json.dumps({"text": t, "label": c}) + "\n" for t, c in rows))
    else:
        separator = "\t" if name == "a.tsv" else ","
        rows = zip(["text", *texts], ["label", *labels], strict=True)
        path.write_text("".join(f"{t}{separator}{c}\n" for t, c in rows))
    monkeypatch.setattr(records, "KEPT", 0)
    monkeypatch.setattr(records, "_BLOCK", 1 << 16)
    monkeypatch.setattr(arrow, "KEPT", 0)
    del texts, labels
    tracemalloc.start()
    try:
        source = open_source(str(path))
        found = read_labels(source, "label")
        checked = check_inputs(source, ("text",), found.rows, inputs="text", fault=text_fault)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == count and not checked.faults and not len(checked.empty)
    assert kept < 32 * count and peak < 1_500_000 + 48 * count, (kept / count, peak / count)
