"""Texts that come as words: CoNLL files, the word of every token, and what is no word."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from jaxft.data.batching import plan_evaluation
from jaxft.data.checks import check_inputs
from jaxft.data.files import Column, table
from jaxft.data.loader import TextBatches
from jaxft.data.sources import open_source
from jaxft.data.targets import unlabelled_words
from jaxft.data.words import find_words_column, tokenize_words, words_fault, words_of

SENTENCES = [["Empire", "State", "\u200b", "@paul", "."], [], ["state"], ["a-b", "paul"] * 9]


def tokenizer():
    """A WordPiece tokenizer that cuts 'empire' and 'paul' in two and has nothing for '\\u200b'."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "emp", "##ire", "state", "@", "pa", "##ul", "."]
    made = Tokenizer(
        models.WordPiece({p: i for i, p in enumerate([*pieces, "a", "-", "b"])}, unk_token="[UNK]")
    )
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def tokens_of(cache=None, max_length=16, sentences=SENTENCES):
    source = table("t.jsonl", {"tokens": sentences})
    return tokenize_words(
        source, np.arange(len(sentences)), "tokens", tokenizer(), max_length=max_length,
        vocab_size=14, cache_dir=cache and str(cache),
    )  # fmt: skip


def test_the_first_token_of_each_word_is_known():
    tokens = tokens_of()
    own = slice(*tokens.offsets[:2])
    #                                  CLS emp ##ire state @ pa ##ul . SEP
    assert tokens.ids[own].tolist() == [2, 4, 5, 6, 7, 8, 9, 10, 3]
    assert tokens.extra["words"][own].tolist() == [
        -1,
        0,
        -1,
        1,
        3,
        -1,
        -1,
        4,
        -1,
    ]  # word 2 has no token
    assert tokens.extra["words"][slice(*tokens.offsets[1:3])].tolist() == [-1, -1]
    assert tokens.lengths.tolist() == [9, 2, 3, 16] and tokens.second.tolist() == [9, 2, 3, 16]


def test_words_of_a_byte_level_tokenizer_begin_with_a_space():
    ids = {piece: i for i, piece in enumerate(["a", "b", "Ġ", "Ġa", "Ġb"])}
    made = Tokenizer(models.BPE(ids, [("Ġ", "a"), ("Ġ", "b")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens = tokenize_words(
        table("t.jsonl", {"tokens": [["ab", "b"]]}), np.arange(1), "tokens", made, max_length=8,
        vocab_size=5, cache_dir=None,
    )  # fmt: skip
    assert tokens.ids.tolist() == [3, 1, 4] and tokens.extra["words"].tolist() == [0, -1, 1]


def test_what_is_cut_is_counted():
    # 14 tokens besides [CLS] and [SEP]: 'a-b' takes three and 'paul' two, so six words have a token.
    assert tokens_of().cut == 18 - 6
    assert tokens_of(max_length=64).cut == 0


def test_the_cache_gives_the_same(tmp_path):
    made, read = tokens_of(tmp_path), tokens_of(tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 2 and read.cached and not made.cached
    for name in ("ids", "offsets", "second"):
        np.testing.assert_array_equal(getattr(made, name), getattr(read, name))
    np.testing.assert_array_equal(made.extra["words"], read.extra["words"])
    assert made.fingerprint == read.fingerprint == tokens_of().fingerprint
    moved = [["Empire", "State", "@", "paul", "."], *SENTENCES[1:]]
    assert tokens_of(sentences=moved).fingerprint != made.fingerprint  # the same ids, other words


@pytest.mark.parametrize("pack", [True, False])
def test_the_words_of_a_batch_are_those_of_its_examples(pack):
    tokens = tokens_of()
    plan = plan_evaluation(tokens.lengths, batch_size=4, pack=pack)
    source = table("t.jsonl", {"tokens": SENTENCES})
    words = Column(source, "tokens", np.arange(len(source)), words_of)
    batches = TextBatches(tokens, unlabelled_words(words), plan)
    found = {}
    for step in range(len(batches)):
        batch = batches[step]
        assert (batch["words"][batch["segment_ids"] == 0] == -1).all()
        for row, column in zip(*np.nonzero(batch["words"] >= 0), strict=True):
            example = batch["index"][row, batch["segment_ids"][row, column] - 1]
            place = (int(example), int(batch["words"][row, column]))
            assert place not in found
            found[place] = int(batch["input_ids"][row, column])
    assert {w: found[0, w] for w in (0, 1, 3, 4)} == {0: 4, 1: 6, 3: 7, 4: 10}
    assert (0, 2) not in found and found[2, 0] == 6 and len(found) == 4 + 1 + 6
    assert batches.notes == ("12 words beyond 16 tokens of their text are not read",)


def test_conll_files(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("\ufeffEU NNP B-ORG\nrejects VBZ O\n\n-DOCSTART- -X- O\n\n# NN O\r\n", "utf-8")
    source = open_source(str(path))
    assert source.columns == ("tokens", "field2", "tags") and len(source) == 2
    assert source[0] == {
        "tokens": ["EU", "rejects"],
        "field2": ["NNP", "VBZ"],
        "tags": ["B-ORG", "O"],
    }
    assert source[1]["tokens"] == ["#"] and source.where(1) == "a.conll, line 6"
    assert source.read(("tags", "tokens"), np.array([1, 0, 1])) == [
        [["O"], ["B-ORG", "O"], ["O"]],
        [["#"], ["EU", "rejects"], ["#"]],
    ]
    path.write_bytes(b"a\rb\nc d\n\r\n\ne f")  # a carriage return alone is a blank
    source = open_source(str(path))
    assert source.column("tokens") == [["a", "c"], ["e"]] and list(source.lines) == [1, 5]
    swapped = source.read(("tags",), np.array([1, 0]))  # the last has no line end
    assert swapped == [[["f"], ["b", "d"]]]
    path.write_text("New York\tB-loc\n\u2028x\tO\n", "utf-8")
    assert open_source(str(path))[0]["tokens"] == ["New York", "\u2028x"]
    path.write_text("a\nb\n\nc\n", "utf-8")
    assert open_source(str(path)).columns == ("tokens",)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\n \n", "a.conll: the file is empty"),
        (b"a O\n\nb\n", r"a.conll, line 3: 1 field .'b'., but line 1 has 2"),
        (b"a O\nb\xff O\n", "a.conll, line 2: byte 0xff is not UTF-8"),
    ],
)
def test_what_is_no_conll_file_is_one_line(tmp_path, content, message):
    path = tmp_path / "a.conll"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_source(str(path))


@pytest.mark.parametrize("kind", ["List", "Sequence", "list"])
def test_the_names_of_classes_in_lists_are_read_from_parquet(tmp_path, kind):
    label = {"names": ["O", "B-x"], "_type": "ClassLabel"}
    feature = [label] if kind == "list" else {"feature": label, "_type": kind}
    written = pyarrow.table({"tokens": [["a", "b"]], "ner_tags": [[0, 1]]})
    info = json.dumps({"info": {"features": {"ner_tags": feature}}})
    pyarrow.parquet.write_table(
        written.replace_schema_metadata({"huggingface": info}), tmp_path / "a.parquet"
    )
    source = open_source(str(tmp_path / "a.parquet"))
    assert source.item_names == {"ner_tags": ("O", "B-x")} and not source.class_names


def test_the_names_of_classes_in_lists_are_read_from_a_saved_data_set(tmp_path):
    datasets = pytest.importorskip("datasets")
    tags = datasets.Sequence(datasets.ClassLabel(names=["O", "B-x"]))
    features = datasets.Features(
        {"tokens": datasets.Sequence(datasets.Value("string")), "tags": tags}
    )
    rows = {"tokens": [["a", "b"]], "tags": [[0, 1]]}
    datasets.Dataset.from_dict(rows, features).save_to_disk(str(tmp_path / "saved"))
    source = open_source(str(tmp_path / "saved"))
    assert source.item_names == {"tags": ("O", "B-x")} and source[0]["tokens"] == ["a", "b"]


def test_words_are_a_list_or_a_text():
    assert (
        words_of("a  b\n") == words_of(["a", "b"]) == words_of(np.array(["a", "b"])) == ["a", "b"]
    )
    values = [["a"], "b c", None, ["a", 5], [], ["\ud800"]]
    found = check_inputs(
        table("t", {"tokens": values}), ("tokens",), np.arange(6), inputs="words", fault=words_fault
    )
    assert list(found.faults) == [2, 3, 5] and found.empty.tolist() == [4]
    assert "holds 5 as word 2" in found.faults[3] and "has no words (None)" in found.faults[2]
    with pytest.raises(ValueError, match="no column 'toks'.*did you mean 'tokens'"):
        find_words_column(table("t", {"tokens": values}), ("toks",))
    with pytest.raises(ValueError, match="words are in one column, got 2"):
        find_words_column(table("t", {"tokens": values}), ("a", "b"))
