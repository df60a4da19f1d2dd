"""What is kept of a large table: a second start parses nothing, and no change of the file goes unnoticed."""

import os

import numpy as np
import pytest

from jaxft.data import delimited, facts, labels, text
from jaxft.data.checks import check_inputs, text_fault
from jaxft.data.labels import read_labels
from jaxft.data.sources import open_source
from jaxft.data.text import tokenize
from jaxft.data.tokenizer import load_tokenizer
from tests.data.test_text import write_tokenizer

TABLES = {
    "a.csv": 'text,label\none,x\n"two\nlines, and a comma",y\n\nthree,x\n  ,y\n',
    "b.csv": "\ufefftext,label\r\none,x\r\ntwo,y",
    "one.csv": "text,label\nalone,x\n",
    "a.tsv": 'text\tlabel\none "quoted"\tx\ntwo\ty\n',
    "b.tsv": 'text\tlabel\n"one ""quoted"""\t"x"\ntwo\ty\n',
    "c.tsv": 'text\tlabel\n"one\tand a tab"\tx\ntwo\ty\n',
}


@pytest.fixture(autouse=True)
def large(monkeypatch):
    monkeypatch.setattr(facts, "LEAST", 0)


def everything(path, cache):
    """All that is asked of a table when a run starts."""
    source = open_source(str(path), cache=cache)
    rows, lines = np.arange(len(source)), [int(line) for line in source.lines]
    found = check_inputs(source, ("text",), rows, inputs="text", fault=text_fault)
    ids = read_labels(source, "label", names=("x", "y")).ids.tolist()
    columns = source.columns, source.column("text"), source.column("label")
    return ids, columns, lines, found.faults, found.empty.tolist()


@pytest.mark.parametrize("name", TABLES)
def test_a_second_start_parses_nothing_and_finds_the_same(tmp_path, monkeypatch, name):
    path, cache = tmp_path / name, str(tmp_path / "cache")
    path.write_bytes(TABLES[name].encode())
    plain = everything(path, None)
    assert everything(path, cache) == plain

    def never(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(delimited, "_read", never)
    monkeypatch.setattr(labels, "_read_codes", never)
    monkeypatch.setattr("jaxft.data.checks._looked_at", never)
    assert everything(path, cache) == plain
    path.rename(tmp_path / f"moved{path.suffix}")  # neither name nor time counts
    os.utime(tmp_path / f"moved{path.suffix}", (1, 1))
    assert everything(tmp_path / f"moved{path.suffix}", cache) == plain


def test_every_change_of_the_file_is_noticed(tmp_path):
    path, cache = tmp_path / "a.csv", str(tmp_path / "cache")
    path.write_text("text,label\none,x\ntwo,y\n")
    before = path.stat()
    assert everything(path, cache)[0] == [0, 1]
    path.write_text("text,label\none,y\ntwo,y\n")  # of the same size, and time
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert everything(path, cache)[0] == [1, 1]
    path.write_text("text,label\none,y\ntwo\n")
    for _ in range(2):  # nothing is kept of what is refused
        with pytest.raises(ValueError, match="line 3: 1 fields, but the header has 2"):
            open_source(str(path), cache=cache)


def test_another_delimiter_is_another_reading(tmp_path):
    path, cache = tmp_path / "a.csv", str(tmp_path / "cache")
    path.write_text("text,a;label\none,1;x\ntwo,2;y\n")
    assert open_source(str(path), delimiter=",", cache=cache).columns == ("text", "a;label")
    assert open_source(str(path), delimiter=";", cache=cache).columns == ("text,a", "label")


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "longer"])
def test_what_is_damaged_is_made_anew(tmp_path, damage):
    path, cache = tmp_path / "a.csv", tmp_path / "cache"
    path.write_text("text,label\none,x\ntwo,y\n")
    plain = everything(path, str(cache))
    files = sorted(cache.glob("*.facts"))
    assert len(files) == 3
    for file in files:
        content = file.read_bytes()
        changed = {
            "cut": content[:-1],
            "flipped": content[:-1] + bytes([content[-1] ^ 1]),
            "foreign": b'{"arrays": [["codes", "|O", 1]], "checksum": ""}\n12345678',
            "longer": content + b"\0",
        }[damage]
        file.write_bytes(changed)
    assert everything(path, str(cache)) == plain
    assert sorted(cache.iterdir()) == files


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\none,x\n")
    with pytest.raises(OSError, match="a.csv/cache"):
        open_source(str(path), cache=str(path / "cache"))


def test_texts_are_hashed_once(tmp_path, monkeypatch):
    path, cache = tmp_path / "a.csv", str(tmp_path / "cache")
    path.write_text("text,label\none,x\ntwo,y\n")

    tokenizer = load_tokenizer(write_tokenizer(tmp_path / "model"))

    def tokens(rows, max_length=16):
        source = open_source(str(path), cache=cache)
        return tokenize(
            source, np.array(rows), ("text",), tokenizer, max_length=max_length,
            vocab_size=1000, cache_dir=cache,
        )  # fmt: skip

    hashed, whole = [], text.texts_key
    monkeypatch.setattr(
        text,
        "texts_key",
        lambda source, rows, *more: hashed.append(rows) or whole(source, rows, *more),
    )
    made = [tokens([0, 1]), tokens([0, 1]), tokens([1]), tokens([0, 1], max_length=8)]
    assert len(hashed) == 3 and [part.cached for part in made] == [False, True, False, False]
    assert made[0].fingerprint == made[1].fingerprint != made[2].fingerprint


def test_small_files_are_parsed_each_time(tmp_path, monkeypatch):
    monkeypatch.undo()
    path = tmp_path / "a.csv"
    path.write_text("text,label\none,x\ntwo,y\n")
    source = open_source(str(path), cache=str(tmp_path / "cache"))
    assert read_labels(source, "label").names == ("x", "y")
    assert source.facts is None and not (tmp_path / "cache").exists()
