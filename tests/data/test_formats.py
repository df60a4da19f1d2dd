"""JSON, Arrow, text, compressed, remote and several files: the same rows in any order."""

import bz2
import gzip
import http.server
import json
import lzma
import threading

import numpy as np
import pyarrow
import pyarrow.feather
import pytest

from jaxft.data import records
from jaxft.data.combined import renamed
from jaxft.data.sources import open_source

ROWS = [
    {"text": "plain", "label": "ham"},
    {"text": 'a "quoted", text\nover two lines', "label": "spam"},
    {"text": "ünïcödé 中文 😀", "label": "ham"},
    {"text": "", "label": "spam"},
]
ORDER = (3, 0, 2, 1)


def rows_of(spec, **options):
    source = open_source(str(spec), **options)
    return [source[row] for row in range(len(source))]


def stream(path, table):
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table, max_chunksize=2)


def feather(path, table, compression="lz4"):
    pyarrow.feather.write_feather(table, path, compression=compression, chunksize=2)


TABLE = pyarrow.Table.from_pylist(ROWS)
LIST = json.dumps(ROWS, ensure_ascii=False)
WRITERS = {
    "list.json": lambda p: p.write_text(LIST),
    "indented.json": lambda p: p.write_text(json.dumps(ROWS, indent=2)),
    "mark.json": lambda p: p.write_text("\ufeff " + LIST, "utf-8"),
    "object.json": lambda p: p.write_text(json.dumps({"version": "1.1", "data": ROWS})),
    "columns.json": lambda p: p.write_text(json.dumps(TABLE.to_pydict())),
    "pandas.json": lambda p: TABLE.to_pandas().to_json(p),
    "lines.json": lambda p: p.write_text("\n".join(map(json.dumps, ROWS))),
    "a.ndjson": lambda p: p.write_text("\n".join(map(json.dumps, ROWS))),
    "a.feather": lambda p: feather(p, TABLE),
    "plain.feather": lambda p: feather(p, TABLE, "uncompressed"),
    "stream.arrow": lambda p: stream(p, TABLE),
}


@pytest.mark.parametrize("kept", [True, False], ids=["in memory", "on disk"])
@pytest.mark.parametrize("name", WRITERS)
def test_files_give_their_rows_in_any_order(tmp_path, monkeypatch, name, kept):
    if not kept:
        monkeypatch.setattr(records, "KEPT", 0)
    WRITERS[name](tmp_path / name)
    source = open_source(str(tmp_path / name))
    assert source.columns == ("text", "label") and len(source) == 4
    assert [source[row] for row in ORDER] == [ROWS[row] for row in ORDER]
    assert source.column("text") == [row["text"] for row in ROWS]


def test_rows_of_a_json_list_have_lines(tmp_path):
    (tmp_path / "a.json").write_text('[\n{"text": "é"},\n\n {"text":\n "b"}, {"label": NaN}\n]\n')
    source = open_source(str(tmp_path / "a.json"))
    assert [source.where(row) for row in range(3)] == [f"a.json, line {n}" for n in (2, 4, 5)]
    assert source.column("text") == ["é", "b", None] and source.column("label") == [None] * 3


def test_class_names_in_the_metadata_of_arrow_files(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["ham", "spam"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    data.save_to_disk(str(tmp_path / "saved"))
    (file,) = (tmp_path / "saved").glob("*.arrow")
    assert open_source(str(file)).class_names == {"label": ("ham", "spam")}


def test_an_arrow_file_of_which_offsets_lie_is_not_followed(tmp_path):
    path = tmp_path / "a.arrow"
    stream(path, pyarrow.table({"text": ["a", "b"]}))
    good, lying = (np.array([0, 1, end], np.int32).tobytes() for end in (2, 1 << 30))
    before, _, after = path.read_bytes().rpartition(good)
    path.write_bytes(before + lying + after)
    with pytest.raises(ValueError, match="a.arrow: column 'text' cannot be read"):
        open_source(str(tmp_path / "a.arrow")).column("text")


def test_squad(tmp_path):
    answers = [{"text": "Paris", "answer_start": 3}, {"text": "In Paris", "answer_start": 0}]
    asked = [
        {"id": "x", "question": "Where?", "answers": answers},
        {"id": "y", "question": "Who?", "answers": [], "is_impossible": True},
    ]
    articles = [
        {"title": "T", "paragraphs": [{"context": "In Paris.", "qas": asked}]},
        {"title": "U", "paragraphs": [{"context": "No.", "qas": [{"id": "z", "question": "?"}]}]},
    ]
    (tmp_path / "dev.json").write_text(json.dumps({"version": "v2.0", "data": articles}))
    source = open_source(str(tmp_path / "dev.json"))
    assert source[0] == {
        "id": "x",
        "title": "T",
        "context": "In Paris.",
        "question": "Where?",
        "answers": {"text": ["Paris", "In Paris"], "answer_start": [3, 0]},
    }
    assert source.column("id") == ["x", "y", "z"]
    assert source[1]["answers"] == source[2]["answers"] == {"text": [], "answer_start": []}
    answers[0]["answer_start"] = "3"
    (tmp_path / "bad.json").write_text(json.dumps({"data": articles}))
    said = "bad.json, article 1, paragraph 1, question 1: has a str as 'answer_start'"
    with pytest.raises(ValueError, match=said):
        open_source(str(tmp_path / "bad.json"))


# Text

POEM = "first\n  second  \n\n\r\nthird\r\nfourth\n \nlast"


@pytest.mark.parametrize(
    ("sample_by", "texts", "lines"),
    [
        ("line", ["first", "  second", "third", "fourth", "last"], [1, 2, 5, 6, 8]),
        ("paragraph", ["first\n  second", "third\nfourth", "last"], [1, 5, 8]),
        ("document", ["first\n  second  \n\n\nthird\nfourth\n \nlast"], [1]),
        ("auto", ["first\n  second", "third\nfourth", "last"], [1, 5, 8]),
    ],
)
@pytest.mark.parametrize("kept", [True, False], ids=["in memory", "on disk"])
def test_text_files(tmp_path, monkeypatch, sample_by, texts, lines, kept):
    if not kept:
        monkeypatch.setattr(records, "KEPT", 0)
    (tmp_path / "a.txt").write_bytes(POEM.encode())
    source = open_source(str(tmp_path / "a.txt"), sample_by=sample_by)
    assert source.columns == ("text",) and source.column("text") == texts
    assert list(source.lines) == lines
    assert [source[row]["text"] for row in reversed(range(len(texts)))] == texts[::-1]


def test_a_stray_blank_line_does_not_make_paragraphs(tmp_path):
    (tmp_path / "a.txt").write_text("a\n" * 50 + "\n" + "b\n" * 50)
    source = open_source(str(tmp_path / "a.txt"))
    assert len(source) == 100 and "a row is a line" in source.notes[0]
    assert "a row is a paragraph" in open_source(_poem(tmp_path)).notes[0]


def _poem(folder):
    (folder / "poem.txt").write_text(POEM)
    return str(folder / "poem.txt")


# Compressed files

PACKERS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pyarrow.Codec("zstd").compress(data, asbytes=True),
}


@pytest.mark.parametrize("kind", PACKERS)
def test_compressed_files_are_unpacked_once(tmp_path, kind):
    content, cache = "\n".join(map(json.dumps, ROWS)).encode(), tmp_path / "cache"
    pack, path = PACKERS[kind], tmp_path / f"a.jsonl.{kind}"
    path.write_bytes(
        pack(content[:20]) + pack(content[20:])
    )  # two members, as pigz and others write
    for _ in range(2):
        source = open_source(str(path), cache=str(cache))
        assert [source[row] for row in ORDER] == [ROWS[row] for row in ORDER]
        assert source.where(1) == "a.jsonl, line 2"
        (unpacked,) = cache.glob("files/*/a.jsonl")
        written = unpacked.stat().st_mtime_ns
    assert unpacked.stat().st_mtime_ns == written
    path.write_bytes(pack(b'{"text": "other"}'))
    assert rows_of(path, cache=str(cache)) == [{"text": "other"}]
    whole = pack(content)
    for bad in (whole[:-9], b"no such thing", b""):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=f"a.jsonl.{kind}: (damaged|the file is empty)"):
            open_source(str(path), cache=str(cache))
    assert len(list(cache.glob("files/*/*"))) == 2  # nothing is left of those


def test_a_disk_that_is_too_small_is_seen_before_it_is_full(tmp_path, monkeypatch):
    from jaxft.data import kept_files

    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"text,label\n" * 5))
    monkeypatch.setattr(kept_files, "_SPARE", 1 << 60)
    with pytest.raises(ValueError, match=r"unpacking a.csv.gz needs more room than .*data.cache"):
        open_source(str(tmp_path / "a.csv.gz"), cache=str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").glob("files/*"))


# Several files, parts of them


def write_parts(folder, count=3, size=4):
    for part in range(count):
        lines = [f"{part}-{row},{'ab'[row % 2]}" for row in range(size)]
        (folder / f"part-{part}.csv").write_text("\n".join(["text,label", *lines]))
    return [f"{part}-{row}" for part in range(count) for row in range(size)]


def test_several_files_are_one_source(tmp_path):
    texts = write_parts(tmp_path)
    parts = [str(tmp_path / f"part-{n}.csv") for n in range(3)]
    together = "part-0.csv and 2 more"
    for spec, name in (
        (f"{tmp_path}/part-*.csv", "part-*.csv"),
        (",".join(parts), together),
        (", ".join(parts), together),
    ):
        source = open_source(spec)
        assert source.column("text") == texts and source.name == name
    rows = np.random.default_rng(0).permutation(12)
    assert source.read(("text",), rows)[0] == [texts[row] for row in rows]
    assert source.where(6) == "part-1.csv, line 4"
    assert source.numbered([1, 6]) == "part-0.csv, line 3, part-1.csv, line 4"
    # A name that is there is that file, whatever is in it.
    (tmp_path / "a,b[0].txt").write_text("x")
    assert rows_of(tmp_path / "a,b[0].txt") == [{"text": "x"}]
    (tmp_path / "part-3.csv").write_text("text\nx\n")
    with pytest.raises(ValueError, match="part-3.csv has no column 'label', which part-0.csv has"):
        open_source(f"{tmp_path}/part-*.csv")
    with pytest.raises(
        ValueError, match="prt-.*no file has such a name; .* holds 'a,b.*part-0.csv'"
    ):
        open_source(f"{tmp_path}/prt-*.csv")
    with pytest.raises(ValueError, match="names nothing between two commas"):
        open_source(f"{parts[0]},,{parts[1]}")


def test_files_that_number_classes_differently_are_joined_by_their_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    for name, classes in (("a", ["ham", "spam"]), ("b", ["spam", "ham"])):
        features = datasets.Features(
            {
                "label": datasets.ClassLabel(names=classes),
                "tags": [datasets.ClassLabel(names=classes)],
            }
        )
        data = datasets.Dataset.from_dict({"label": [0], "tags": [[0, 1]]}, features=features)
        data.to_parquet(str(tmp_path / f"{name}.parquet"))
    same = open_source(f"{tmp_path}/a.parquet,{tmp_path}/a.parquet")
    assert same[1] == {"label": 0, "tags": [0, 1]} and same.class_names["label"] == ("ham", "spam")
    source = open_source(f"{tmp_path}/*.parquet")
    assert source.column("label") == ["ham", "spam"] and not source.class_names
    assert source.column("tags") == [["ham", "spam"], ["spam", "ham"]] and not source.item_names


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ("[:]", range(12)),
        ("[:80%]", range(10)),
        ("[80%:]", range(10, 12)),
        ("[-25%:]", range(9, 12)),
        ("[10%:50%]", range(1, 6)),
        ("[3:5]", range(3, 5)),
        ("[-2:]", range(10, 12)),
        ("[8:99]", range(8, 12)),
    ],
)
def test_parts_of_a_source_are_those_of_datasets(tmp_path, bounds, expected):
    texts = write_parts(tmp_path)
    (tmp_path / "a.csv").write_text("\n".join(["text", *texts]))
    for spec in (f"{tmp_path}/a.csv", f"{tmp_path}/part-*.csv"):
        source = open_source(spec + bounds)
        assert source.column("text") == [texts[row] for row in expected]
        assert source.where(0) == open_source(spec).where(expected[0])
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"text": texts})
    if bounds not in ("[:]", "[8:99]"):  # which datasets does not take
        instruction = datasets.ReadInstruction.from_spec(f"train{bounds}")
        (part,) = instruction.to_absolute({"train": len(dataset)})
        assert texts[part.from_ : part.to] == source.column("text")


def test_parts_without_rows_are_refused(tmp_path):
    write_parts(tmp_path)
    with pytest.raises(ValueError, match=r"part-0.csv\[9:\]: no rows; part-0.csv has 4"):
        open_source(f"{tmp_path}/part-0.csv[9:]")
    for slip in ("[80%]", "[:80]%", "[0:80 %]"):
        with pytest.raises(
            ValueError, match=r"a part of .*part-0.csv is written .*part-0.csv\[:80%\]"
        ):
            open_source(f"{tmp_path}/part-0.csv{slip}")


# Remote files


class Server(http.server.BaseHTTPRequestHandler):
    files: dict[str, tuple[bytes, str]] = {}
    asked: list[str] = []
    short = False

    def do_GET(self):
        self.asked.append(self.path)
        if self.path not in self.files:
            return self.send_error(404)
        content, version = self.files[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", version)
        self.end_headers()
        self.wfile.write(content[:5] if self.short else content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    Server.files, Server.asked, Server.short = {}, [], False
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found, f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


def test_files_of_a_web_server_are_downloaded_once(tmp_path, server):
    running, address = server
    cache, spec = str(tmp_path / "cache"), f"{address}/data/train.csv?key=secret"
    Server.files["/data/train.csv?key=secret"] = (b"text,label\na,b\n", "1")
    source = open_source(spec, cache=cache)
    assert source[0] == {"text": "a", "label": "b"} and source.name == "train.csv"
    assert "downloaded" in source.notes[0] and "secret" not in source.notes[0]
    assert open_source(spec, cache=cache).notes == ()
    Server.files["/data/train.csv?key=secret"] = (b"text,label\nc,d\n", "2")
    assert rows_of(spec, cache=cache) == [{"text": "c", "label": "d"}]
    Server.files["/x.jsonl.gz"] = (gzip.compress(b'{"text": "z"}'), "1")
    assert rows_of(
        f"{address}/x.jsonl.gz[:50%],{address}/x.jsonl.gz"[len(address) + 18 :], cache=cache
    )
    Server.short = True
    with pytest.raises(ValueError, match="the download ended after 5 of"):
        open_source(f"{address}/x.jsonl.gz", cache=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"/gone.csv: cannot be downloaded \(HTTP Error 404"):
        open_source(f"{address}/gone.csv?key=secret", cache=cache)
    with pytest.raises(ValueError, match="files of a web server cannot be listed"):
        open_source(f"{address}/part-*.csv")
    running.shutdown()
    running.server_close()
    again = open_source(spec, cache=cache)
    assert again[0] == {"text": "c", "label": "d"} and "not reached" in again.notes[0]
    with pytest.raises(ValueError, match="new.csv: cannot be downloaded") as error:
        open_source(f"{address}/new.csv?key=secret", cache=cache)
    assert "secret" not in str(error.value)


def test_files_that_fsspec_reaches(tmp_path):
    import fsspec

    memory, cache = fsspec.filesystem("memory"), str(tmp_path / "cache")
    for part in range(2):
        memory.pipe(f"/bucket/part-{part}.csv", f"text,label\n{part},x\n".encode())
    assert rows_of("memory://bucket/part-1.csv", cache=cache) == [{"text": "1", "label": "x"}]
    source = open_source("memory://bucket/part-*.csv", cache=cache)
    assert source.column("text") == ["0", "1"]
    for spec, said in {
        "memory://bucket/gone.csv": "memory://bucket/gone.csv: cannot be downloaded",
        "memory://bucket": "memory://bucket: a folder; name the files in it",
        "memory://bucket/x-*.csv": "no file has such a name",
        "nowhere://bucket/a.csv": "nowhere://bucket/a.csv: Protocol not known",
    }.items():
        with pytest.raises(ValueError, match=said):
            open_source(spec, cache=cache)


# Broken records, other names, paths of images

BROKEN = {
    "a.csv": (b'text,label\na,x\nb\nc,y,z\n"d\ne",x\nf\n', ["a", "d\ne"], "lines 3, 4, 7"),
    "a.tsv": (b'text\tlabel\na\tx\nb\n"d\tx\nf\n', ["a", '"d'], "lines 3, 5"),
    "a.jsonl": (
        b'{"text": "a"}\n{"text": "b\n\n[1]\n{"text": "d"}\n\xff\n',
        ["a", "d"],
        "lines 2, 4, 6",
    ),
    "a.json": (b'{"text": "a"}\n{"text": "b\n{"text": "d"}', ["a", "d"], "line 2"),
}


@pytest.mark.parametrize("kept", [True, False], ids=["in memory", "on disk"])
@pytest.mark.parametrize("name", BROKEN)
def test_records_that_cannot_be_read_are_left_out_on_request(tmp_path, monkeypatch, name, kept):
    if not kept:
        monkeypatch.setattr(records, "KEPT", 0)
    content, texts, lines = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}, line .*; mend it, or .*on_bad_row='skip'"):
        open_source(str(tmp_path / name))
    source = open_source(str(tmp_path / name), skip=True)
    assert source.column("text") == texts and [source[1]["text"], source[0]["text"]] == texts[::-1]
    count = lines.count(",") + 1
    assert source.notes[-1] == (
        f"{name}: {count} record{'s' * (count > 1)} that cannot be read left out ({lines})"
    )


def test_a_broken_line_is_shown(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b", label: 1}\n')
    said = (
        r"""a.jsonl, line 2: not JSON \(.* at column 15, in '{"text": "b", label: 1}'\); mend it"""
    )
    with pytest.raises(ValueError, match=said):
        open_source(str(tmp_path / "a.jsonl"))
    (tmp_path / "a.csv").write_text("text,label\na\tb\n")
    with pytest.raises(ValueError, match=r"line 2: 1 fields, .*; it is 'a\\tb'; mend it"):
        open_source(str(tmp_path / "a.csv"))


def test_columns_are_renamed(tmp_path):
    write_parts(tmp_path, 1)
    source = open_source(f"{tmp_path}/part-0.csv")
    again = renamed(source, [("label", "text"), ("text", "label")])
    assert again.columns == ("label", "text") and again[1] == {"label": "0-1", "text": "b"}
    assert again.where(1) == source.where(1)
    assert renamed(source, [("gone", "text")]) is source  # it has the name already
    with pytest.raises(ValueError, match="data.rename: part-0.csv has no column 'txt'.*'text'"):
        renamed(source, [("txt", "sentence")])
    with pytest.raises(ValueError, match="would have two columns 'label'"):
        renamed(source, [("text", "label")])
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"y": datasets.ClassLabel(names=["ham", "spam"])})
    datasets.Dataset.from_dict({"y": [1]}, features=features).to_parquet(
        str(tmp_path / "a.parquet")
    )
    classes = renamed(open_source(str(tmp_path / "a.parquet")), [("y", "label")])
    assert classes.class_names == {"label": ("ham", "spam")} and classes[0] == {"label": 1}


def test_paths_of_images_start_at_the_table_or_here(tmp_path, monkeypatch):
    for folder in ("table", "here"):
        (tmp_path / folder / "x").mkdir(parents=True)
    table = tmp_path / "table" / "t.csv"
    table.write_text("image,label,note\nx/a.png,p,a.b\nx/b.png,q,c\n,p,d\n")
    monkeypatch.chdir(tmp_path / "here")

    def opened():
        source = open_source(str(table), images=True)
        return source.column("image"), source.notes[-1]

    (tmp_path / "here" / "x" / "b.png").touch()
    assert opened() == (
        ["x/a.png", "x/b.png", ""],
        "t.csv: the paths of 'image' start at the current folder",
    )
    for name in ("a.png", "b.png"):
        (tmp_path / "table" / "x" / name).touch()
    found, note = opened()
    assert found == [str(table.parent / "x" / "a.png"), str(table.parent / "x" / "b.png"), ""]
    assert note == f"t.csv: the paths of 'image' start at the folder of the file, '{table.parent}'"
    assert open_source(str(table)).column("image")[0] == "x/a.png"  # texts stay texts
    lines = "".join(json.dumps({"image": f"x/{n}.png"}) + "\n" for n in "ab")
    (tmp_path / "table" / "t.jsonl").write_text(lines)
    several = open_source(f"{table.parent}/t.jsonl,{table.parent}/t.jsonl", images=True)
    assert several.column("image") == found[:2] * 2
