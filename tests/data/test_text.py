"""Tokenising: equal to AutoTokenizer, cut like it, cached, and safe against a damaged cache."""

import json
import os
import shutil
import string
import tracemalloc

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from jaxft.data import files, records, text, token_cache
from jaxft.data.files import table
from jaxft.data.filling import fill_text
from jaxft.data.sources import open_source
from jaxft.data.text import chunked, find_text_columns, load_tokenizer, tokenize
from jaxft.data.tokenizer import attempt

TEXTS = [
    "the cat sat on the mat",
    "",
    "   ",
    "Über ÉTÉ naïve 中文字 😀 \u200b\t tab",
    "a " * 60,
    "supercalifragilistic!!! [SEP] [MASK] don't",
    "x",
]
OTHERS = ["a dog", "the mat", "", "été " * 50, "b " * 30, "中", "the cat sat"]


def write_tokenizer(folder, lowercase=True, **flags):
    """A checkpoint folder with a WordPiece tokenizer over letters and a few words."""
    folder.mkdir(exist_ok=True)
    letters = string.ascii_letters + string.digits + string.punctuation + "é中文"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "mat", "Cat"]
    words += list(letters) + [f"##{letter}" for letter in letters]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    # Checkpoints are saved with settings like these; they must not reach the data.
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(20)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase} | flags
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    lines = sorted(vocabulary, key=vocabulary.__getitem__)
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("model"))


def run(folder, *columns, max_length=32, vocab_size=1000, cache_dir=None, rows=None):
    names = ("text_a", "text_b")[: len(columns)]
    source = table("a.csv", dict(zip(names, columns, strict=True)))
    rows = np.arange(len(source)) if rows is None else rows
    return tokenize(
        source,
        rows,
        names,
        load_tokenizer(folder),
        max_length=max_length,
        vocab_size=vocab_size,
        cache_dir=cache_dir,
    )


def split(tokens):
    return [part.tolist() for part in np.split(tokens.ids, tokens.offsets[1:-1])]


@pytest.mark.parametrize("max_length", [4, 7, 16, 64])
@pytest.mark.parametrize("columns", [(TEXTS,), (TEXTS, OTHERS)], ids=["single", "pair"])
def test_tokens_equal_the_auto_tokenizer(folder, columns, max_length):
    from transformers import AutoTokenizer

    expected = AutoTokenizer.from_pretrained(folder)(
        *columns, truncation=True, max_length=max_length
    )
    tokens = run(folder, *columns, max_length=max_length)
    assert split(tokens) == expected["input_ids"]
    assert tokens.second.tolist() == [row.count(0) for row in expected["token_type_ids"]]
    assert tokens.lengths.tolist() == list(map(len, expected["input_ids"]))


@pytest.mark.parametrize("max_length", [5, 16, 64])
def test_pairs_of_roberta_have_separators_and_no_types(tmp_path, max_length):
    """<s> a </s></s> b </s>"""
    from transformers import AutoTokenizer, RobertaTokenizer

    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*special, *alphabet))}
    RobertaTokenizer(vocab=vocabulary, merges=[]).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    expected = tokenizer(TEXTS, OTHERS, truncation=True, max_length=max_length)["input_ids"]
    tokens = run(str(tmp_path), TEXTS, OTHERS, max_length=max_length)
    assert split(tokens) == expected
    separators = [np.flatnonzero(np.array(row) == vocabulary["</s>"]) for row in expected]
    assert all(len(at) == 3 and at[1] == at[0] + 1 for at in separators)
    assert tokens.second.tolist() == tokens.lengths.tolist()
    with pytest.raises(ValueError, match="at least 5 tokens, got 4"):
        run(str(tmp_path), TEXTS, OTHERS, max_length=4)


def test_a_text_without_a_token_is_named(tmp_path):
    """BERT's tokenizer adds tokens of its own to an empty text, GPT-2's none."""
    from transformers import GPT2Tokenizer

    vocabulary = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary["<|endoftext|>"] = len(vocabulary)
    GPT2Tokenizer(vocab=vocabulary, merges=[]).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert run(str(tmp_path), ["ab", "c"]).lengths.tolist() == [2, 1]
    with pytest.raises(ValueError, match="a.csv, row 2: the tokenizer makes no token .* 2 such"):
        run(str(tmp_path), ["ab", "", ""])


@pytest.mark.parametrize("case", ["flags differ", "flags missing", "cased", "vocab only"])
def test_the_auto_tokenizer_decides_where_the_files_disagree(tmp_path, case):
    from transformers import AutoTokenizer

    path = write_tokenizer(tmp_path / "m", lowercase=case != "flags missing" and case != "cased")
    if case == "flags differ":  # the flag wins over tokenizer.json
        write_tokenizer(tmp_path / "m", do_lower_case=False)
    if case == "flags missing":
        (tmp_path / "m" / "tokenizer_config.json").unlink()
    if case == "vocab only":
        (tmp_path / "m" / "tokenizer.json").unlink()
    expected = AutoTokenizer.from_pretrained(path)(["The Cat sat", "Cat"])["input_ids"]
    assert split(run(path, ["The Cat sat", "Cat"])) == expected


def test_only_the_given_rows_are_tokenised_in_their_order(folder):
    every = split(run(folder, TEXTS))
    assert split(run(folder, TEXTS, rows=np.array([5, 0]))) == [every[5], every[0]]


def test_a_cached_file_is_mapped_and_equal(folder, tmp_path):
    made = run(folder, TEXTS, OTHERS, cache_dir=str(tmp_path / "new"))
    again = run(folder, TEXTS, OTHERS, cache_dir=str(tmp_path / "new"))
    assert not made.cached and again.cached
    assert isinstance(again.ids, np.memmap)
    kept = run(folder, TEXTS, OTHERS)
    for name in ("ids", "offsets", "second", "fingerprint", "largest"):
        np.testing.assert_array_equal(getattr(made, name), getattr(again, name))
        np.testing.assert_array_equal(getattr(made, name), getattr(kept, name))
    assert made.ids.dtype == np.uint16 and kept.ids.dtype == np.int32
    assert len(list((tmp_path / "new").iterdir())) == 1  # and no temporary file
    # Other programs can open it.
    (file,) = (tmp_path / "new").iterdir()
    assert np.load(file).tobytes().endswith(made.ids.tobytes())


@pytest.mark.parametrize(
    "change",
    ["text", "columns", "max_length", "tokenizer"],
)
def test_whatever_changes_the_tokens_changes_the_file(folder, tmp_path, change):
    cache = str(tmp_path / "cache")
    run(folder, ["ab", "c"], cache_dir=cache)
    if change == "text":
        assert not run(folder, ["a", "bc"], cache_dir=cache).cached
    if change == "columns":
        assert not run(folder, ["ab"], ["c"], cache_dir=cache).cached
    if change == "max_length":
        assert not run(folder, ["ab", "c"], max_length=5, cache_dir=cache).cached
    if change == "tokenizer":
        other = write_tokenizer(tmp_path / "other", lowercase=False)
        assert not run(other, ["ab", "c"], cache_dir=cache).cached
    assert run(folder, ["ab", "c"], cache_dir=cache).cached


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other", "text"])
def test_a_damaged_cache_is_made_anew(folder, tmp_path, damage):
    good = run(folder, TEXTS, cache_dir=str(tmp_path))
    expected = split(good)
    del good
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[-5] ^= 4
    changed = {
        "cut": data[:-8],
        "flip": data,
        "empty": b"",
        "other": b"\x93NUMPY" + bytes(40),
        "text": b"hello",
    }
    file.unlink()
    file.write_bytes(changed[damage])
    again = run(folder, TEXTS, cache_dir=str(tmp_path))
    assert not again.cached and split(again) == expected
    assert run(folder, TEXTS, cache_dir=str(tmp_path)).cached


def flip(file, place):
    """Changes one bit of a file's content, and leaves its times as they are."""
    times = file.stat()
    data = bytearray(file.read_bytes())
    data[place] ^= 4
    file.unlink()
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def large_cache(folder):
    """A cache of 1.6 MB, of which samples are a sixth; its path and number of examples."""
    ids = np.random.default_rng(0).integers(0, 9, 400_000).astype(np.int32)
    lengths = np.full(20, 20_000, np.int32)
    path = folder / f"{'0a' * 16}.npy"
    with token_cache.writing(path, len(lengths)) as writer:
        writer.append(lengths, lengths, ids)
    return path, len(lengths)


def test_a_start_reads_a_small_part_of_an_untouched_cache(tmp_path, monkeypatch):
    path, examples = large_cache(tmp_path)
    read = []
    whole = token_cache.checksum
    monkeypatch.setattr(token_cache, "checksum", lambda parts: read.append(1) or whole(parts))
    assert token_cache.load(path, examples) and not read
    shutil.copyfile(path, tmp_path / "copy")
    os.utime(tmp_path / "copy", (1e9, 1e9))  # not known to be untouched
    (tmp_path / "copy").replace(path)
    assert token_cache.load(path, examples) and read == [1]
    assert token_cache.load(path, examples) and read == [1]  # found whole, and noted as such


@pytest.mark.parametrize("place", [100, 200, 5000, -3, -5000])
def test_damage_under_an_unchanged_time_is_noticed_where_it_is_sampled(folder, tmp_path, place):
    good = run(folder, ["the cat sat " * 9] * 300, cache_dir=str(tmp_path))
    expected = good.ids.tolist()
    (file,) = tmp_path.iterdir()
    flip(file, place)
    again = run(folder, ["the cat sat " * 9] * 300, cache_dir=str(tmp_path))
    assert not again.cached and again.ids.tolist() == expected


def test_an_edit_anywhere_in_a_large_cache_is_noticed(tmp_path):
    path, examples = large_cache(tmp_path)
    os.utime(path, ns=(0, path.stat().st_mtime_ns))
    for place in np.linspace(5000, path.stat().st_size - 5000, 40).astype(int):
        with path.open("r+b") as file:  # most of the places lie between two samples
            file.seek(place)
            before = file.read(1)
            file.seek(place)
            file.write(bytes([before[0] ^ 1]))
        assert token_cache.load(path, examples) is None
        with path.open("r+b") as file:
            file.seek(place)
            file.write(before)
    assert token_cache.load(path, examples)


def test_the_fingerprint_is_that_of_the_tokens(folder, tmp_path):
    made = run(folder, TEXTS, OTHERS, cache_dir=str(tmp_path))
    read = run(folder, TEXTS, OTHERS, cache_dir=str(tmp_path))
    other = run(folder, [*TEXTS[:-1], "y"], OTHERS)
    assert read.cached and len(made.fingerprint) == 32
    assert made.fingerprint == read.fingerprint == run(folder, TEXTS, OTHERS).fingerprint
    assert made.fingerprint != other.fingerprint
    assert made.largest == read.largest == read.ids.max()


@pytest.fixture
def small_shards(monkeypatch):
    """Three examples a file."""
    monkeypatch.setattr(token_cache, "SHARD", 3)


def files_of(folder):
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def test_many_texts_are_many_files_that_read_as_one(folder, tmp_path, monkeypatch):
    whole = run(folder, TEXTS, OTHERS)
    monkeypatch.setattr(token_cache, "SHARD", 3)
    kept, made, read = (
        run(folder, TEXTS, OTHERS, cache_dir=c) for c in (None, *[str(tmp_path)] * 2)
    )
    assert len(files_of(tmp_path)) == 3 and read.cached and not made.cached
    index = np.random.default_rng(0).permutation(len(whole.ids))
    for tokens in (kept, made, read):
        np.testing.assert_array_equal(tokens.ids[index], whole.ids[index])
        np.testing.assert_array_equal(tokens.offsets, whole.offsets)
        np.testing.assert_array_equal(tokens.second, whole.second)
        assert (tokens.largest, len(tokens.ids)) == (whole.largest, len(whole.ids))
        assert tokens.fingerprint == made.fingerprint != whole.fingerprint
        slots = np.array([[6, 1, -1], [2, 5, 0]])
        for name, array in fill_text(whole, slots, 100).items():
            np.testing.assert_array_equal(fill_text(tokens, slots, 100)[name], array)
    assert run(folder, [*TEXTS[:-1], "y"], OTHERS).fingerprint != made.fingerprint


def test_what_is_added_and_what_is_damaged_is_tokenised_alone(folder, tmp_path, small_shards):
    run(folder, TEXTS, cache_dir=str(tmp_path))
    before = files_of(tmp_path)
    longer = run(folder, [*TEXTS[:6], "new", "text"], cache_dir=str(tmp_path))
    after = files_of(tmp_path)
    assert len(before) == 3 and before.items() <= after.items() and len(after) == 4
    expected = longer.ids[np.arange(len(longer.ids))]
    assert not longer.cached
    damaged = tmp_path / sorted(before)[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    run(folder, TEXTS, cache_dir=str(tmp_path))
    again = run(folder, [*TEXTS[:6], "new", "text"], cache_dir=str(tmp_path))
    assert again.cached and again.ids[np.arange(len(again.ids))].tolist() == expected.tolist()
    changed = {name for name, node in files_of(tmp_path).items() if after[name] != node}
    assert changed == {damaged.name}


def test_a_kill_leaves_whole_files_and_no_part_of_one(folder, tmp_path, small_shards, monkeypatch):
    class Killed(BaseException): ...

    encoded = text._encoded

    def killed_in_the_second(source, rows, *rest):
        for chunk in encoded(source, rows, *rest):
            yield chunk
            if rows[0] == 3:
                raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(text, "_encoded", killed_in_the_second)
        with pytest.raises(Killed):
            run(folder, TEXTS, cache_dir=str(tmp_path))
    first = files_of(tmp_path)
    assert len(first) == 1 and next(iter(first)).endswith(".npy")
    run(folder, TEXTS, cache_dir=str(tmp_path))
    assert len(files_of(tmp_path)) == 3 and first.items() <= files_of(tmp_path).items()


def test_texts_are_never_all_in_memory(folder, tmp_path, monkeypatch):
    """Nor the tokens: 20,000 texts of 75 characters each would be 2.5 MB, and their tokens 1.7 MB."""
    count = 20_000
    texts = [f"the cat sat on the mat {i:05}" + " the" * 12 for i in range(count)]
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"{t},x\n" for t in texts))
    del texts
    monkeypatch.setattr(records, "KEPT", 0)
    monkeypatch.setattr("jaxft.data.tokens._BLOCK", 1 << 12)
    monkeypatch.setattr(files, "CHUNK", 64)
    source = open_source(str(path))
    tokenizer = load_tokenizer(folder)
    tracemalloc.start()
    try:
        tokens = tokenize(
            source, np.arange(count), ("text",), tokenizer, max_length=32, vocab_size=1000,
            cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(tokens.ids) > 20 * count and peak < 40 * count, peak / count


def test_leftovers_of_killed_writers_are_removed_when_they_are_old(folder, tmp_path):
    names = [f"{'0a' * 16}.abcd_12{i}.tmp" for i in range(2)] + ["mine.tmp", f"{'0a' * 16}.npy.tmp"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
        if name != names[1]:
            os.utime(tmp_path / name, (1e9, 1e9))
    run(folder, TEXTS, cache_dir=str(tmp_path))
    left = {path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"}
    assert left == set(names[1:])


def test_long_texts_are_tokenised_a_few_at_a_time(folder, monkeypatch):
    sizes = []
    monkeypatch.setattr("jaxft.data.text.CHUNK_CHARACTERS", 100)
    expected = split(run(folder, TEXTS * 30, OTHERS * 30))
    monkeypatch.setattr("jaxft.data.text.CHUNK_CHARACTERS", 10**9)
    assert split(run(folder, TEXTS * 30, OTHERS * 30)) == expected
    long = [["x" * 60, "y" * 60, "z", "", "u" * 500]]
    monkeypatch.setattr("jaxft.data.text.CHUNK_CHARACTERS", 100)
    sizes = [len(chunk) for chunk in chunked(long)]
    assert sizes == [2, 3]


def test_half_a_pair_of_surrogates_is_named(folder):
    with pytest.raises(ValueError, match=r"a.csv, row 3: column 'text_b' holds '\\ud83d', half of"):
        run(folder, ["a", "b", "c"], ["x", "y\U0001f600", "z\ud83d"])


def test_a_tokenizer_of_another_model_is_an_error(folder):
    with pytest.raises(ValueError, match=r"token \d+ \('.*'\), but the model's vocabulary has 20"):
        run(folder, TEXTS, vocab_size=20)


@pytest.mark.parametrize("value", [None, ["a"], float("nan")])
def test_a_row_without_text_is_named(folder, value):
    with pytest.raises(ValueError, match="a.csv, row 2: column 'text_a' has no text"):
        run(folder, ["a", value])


def test_numbers_and_bytes_are_text(folder):
    assert split(run(folder, [12, b"the"])) == split(run(folder, ["12", "the"]))


def test_too_short_a_limit_is_refused(folder):
    with pytest.raises(ValueError, match="at least 4 tokens, got 3"):
        run(folder, TEXTS, max_length=3)


def test_missing_and_broken_tokenizers(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer there"):
        load_tokenizer(str(tmp_path))
    path = write_tokenizer(tmp_path / "m")
    shutil.copy(f"{path}/config.json", f"{path}/tokenizer.json")
    (tmp_path / "m" / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        load_tokenizer(path)


NOT_AN_OBJECT = {
    "empty": (b"", "the file is empty"),
    "bytes": (b"\xff\xfe\x00", "is not UTF-8: byte 0"),
    "list": (b"[1]", "must hold a JSON object, found list"),
    "null": (b"null", "must hold a JSON object"),
    "deep": (b'{"a":' * 100_000, "nested deeper than 50 levels"),
    "pipe": (None, "is a pipe"),
}


@pytest.mark.parametrize("kind", NOT_AN_OBJECT)
@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"]
)
def test_a_tokenizer_file_of_something_else_is_named(tmp_path, name, kind):
    content, what = NOT_AN_OBJECT[kind]
    path = write_tokenizer(tmp_path / "m")
    file = tmp_path / "m" / name
    if name in ("special_tokens_map.json", "vocab.txt"):  # read where there is no tokenizer.json
        (tmp_path / "m" / "tokenizer.json").unlink()
    if name == "vocab.txt" and kind not in ("empty", "bytes", "pipe"):
        what = "the tokenizer cannot encode a text"
    file.unlink(missing_ok=True)
    os.mkfifo(file) if content is None else file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}:? .*{what}") as error:
        load_tokenizer(path)
    assert "\n" not in str(error.value)


def change(saved, path, value):
    *outer, last = path.split("/")
    for name in outer:
        saved = saved[name]
    saved[last] = value


@pytest.mark.parametrize(
    "where, value, what",
    [
        ("model", {}, "it holds no tokenizer"),
        ("model", "x", "it holds no tokenizer"),
        ("model/vocab", {}, "it holds no tokenizer"),
        ("model/vocab/the", -1, "token 'the' has the id -1; an id is an integer from 0 on"),
        ("model/vocab/the", 1.5, "token 'the' has the id 1.5"),
        ("model/vocab/the", "5", "token 'the' has the id '5'"),
        ("model/vocab/the", 10**20, "token 'the' has the id 1000"),
        ("model/vocab", [1, 2], "cannot be read .*invalid type: sequence"),
        ("model/vocab", {"a": 0}, "cannot encode a text .*Missing .UNK. token"),
        ("model/type", "Nope", "cannot be read"),
        ("model/type", ["WordPiece"], "cannot be read"),
        ("model/max_input_chars_per_word", -1, "cannot be read"),
        ("added_tokens", "x", "cannot be read"),
        ("added_tokens", [{"id": -5, "content": "z"}], "token 'z' has the id -5"),
        ("normalizer", [1], "cannot be read"),
        ("pre_tokenizer", "x", "cannot be read"),
        ("truncation", {"max_length": -1}, "cannot be read"),
        ("padding", 7, "cannot be read"),
    ],
)
def test_a_hostile_tokenizer_is_one_line_that_names_the_file(tmp_path, where, value, what):
    path = write_tokenizer(tmp_path / "m")
    file = tmp_path / "m" / "tokenizer.json"
    saved = json.loads(file.read_text())
    change(saved, where, value)
    file.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=f"tokenizer.json: .*{what}") as error:
        load_tokenizer(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "flags",
    [
        {"tokenizer_class": ["a"]},
        {"tokenizer_class": "Nope"},
        {"auto_map": "x"},
        {"added_tokens_decoder": 3},
        {"cls_token": 5},
        {"do_lower_case": [1]},
    ],
)
def test_what_transformers_stumbles_on_is_one_line(tmp_path, flags):
    path = write_tokenizer(tmp_path / "m", **flags)
    (tmp_path / "m" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="vocab.txt: the tokenizer cannot be read") as error:
        load_tokenizer(path)
    assert "\n" not in str(error.value)


def test_code_of_a_checkpoint_is_not_run_and_not_asked_about(tmp_path, monkeypatch):
    path = write_tokenizer(
        tmp_path / "m", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]}
    )
    (tmp_path / "m" / "tokenizer.json").unlink()
    (tmp_path / "m" / "own.py").write_text(
        f"open({str(tmp_path / 'mark')!r}, 'w')\nclass Own: ...\n"
    )
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question"))
    with pytest.raises(ValueError, match="the tokenizer cannot be read"):
        load_tokenizer(path)
    assert not (tmp_path / "mark").exists()


def test_a_panic_of_the_library_is_one_line():
    class PanicException(BaseException): ...

    def fail(error):
        raise error

    with pytest.raises(ValueError, match=r"^x: bad \(PanicException: index out of bounds\)$"):
        attempt(lambda: fail(PanicException("index out of bounds\nat …")), "x: bad")
    with pytest.raises(KeyboardInterrupt):
        attempt(lambda: fail(KeyboardInterrupt()), "x: bad")


@pytest.mark.parametrize(
    "columns, found",
    [
        (["text", "label"], ("text",)),
        (["label", "Sentence"], ("Sentence",)),
        (["premise", "hypothesis", "label", "text"], ("premise", "hypothesis")),
        (["idx", "sentence1", "sentence2", "label"], ("sentence1", "sentence2")),
        (["question", "sentence", "label"], ("question", "sentence")),
        (["utterance", "label"], ("utterance",)),  # the only column beside the label
    ],
)
def test_text_columns_are_found_by_name(columns, found):
    source = table("a.csv", {name: ["x"] for name in columns})
    assert find_text_columns(source, label="label") == found


def test_text_columns_as_given():
    source = table("a.csv", {name: ["x"] for name in ("title", "body", "other", "label")})
    assert find_text_columns(source, ("body", "title")) == ("body", "title")
    with pytest.raises(ValueError, match="no column 'bdy'.*did you mean 'body'"):
        find_text_columns(source, ("bdy",))
    with pytest.raises(ValueError, match="no text column found among 'title', 'body'"):
        find_text_columns(source, label="label")
    with pytest.raises(ValueError, match="one or two text columns"):
        find_text_columns(source, ("title", "body", "other"))
