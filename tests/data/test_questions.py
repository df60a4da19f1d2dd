"""Windows of long contexts, the characters of each token, and where answers lie in them."""

import json

import numpy as np
import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from jaxft.data.answers import answers_of, read_answers
from jaxft.data.batching import plan_evaluation
from jaxft.data.files import table
from jaxft.data.loader import TextBatches
from jaxft.data.questions import tokenize_questions, window_ranges

CONTEXT = (
    "Zoë and José met at the Café Noir 👩‍🚀 in 東京都 on a cold day; “Ça va?” said he. "
    "Ångström (1814–1874) was nai\u0308ve, they say, and e\u0301clairs cost 5 €. "
) * 2
ASKED = {
    "question": [" Where?", "Who?", "When?", "What is it?", "Where?"],
    "context": [CONTEXT, CONTEXT, "It was 1814–1874.", "nothing", ""],
    "answers": [
        {"text": ["東京都", "the Café Noir"], "answer_start": [CONTEXT.index("東京都"), 20]},
        [{"text": "Ångström", "answer_start": CONTEXT.rindex("Ångström")}],
        "1814–1874",
        {"text": [], "answer_start": []},
        [],
    ],
}


def wordpiece():
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    # Strips accents: NFD, so that what is tokenised is longer than the text.
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(
        [CONTEXT, *ASKED["question"], "it was nothing"],
        trainers.WordPieceTrainer(vocab_size=400, special_tokens=special),
    )
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def byte_level():
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        [CONTEXT, *ASKED["question"]],
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=["<s>", "<pad>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return made


@pytest.fixture(scope="module", params=[wordpiece, byte_level])
def tokenizer(request):
    return request.param()


def tokens_of(tokenizer, cache=None, max_length=24, stride=6, asked=ASKED):
    source = table("q.jsonl", asked)
    return tokenize_questions(
        source, np.arange(len(source)), ("question", "context"), tokenizer, max_length=max_length,
        stride=stride, vocab_size=1000, cache_dir=cache and str(cache),
    )  # fmt: skip


def entries(tokens):
    for j in range(len(tokens)):
        own = np.arange(tokens.offsets[j], tokens.offsets[j + 1])
        yield tokens.ids[own], *(tokens.extra[name][own] for name in ("begins", "ends"))


def test_windows_are_those_that_tokenizers_cut(tokenizer):
    tokens = tokens_of(tokenizer)
    expected = []
    tokenizer.enable_truncation(24, stride=6, strategy="only_second")
    for question, context in zip(ASKED["question"], ASKED["context"], strict=True):
        whole = tokenizer.encode(question.lstrip(), context)
        expected.append([whole, *whole.overflowing])
    tokenizer.no_truncation()
    assert np.diff(tokens.windows).tolist() == [len(windows) for windows in expected]
    assert max(len(windows) for windows in expected) > 3
    windows = [window for example in expected for window in example]
    for j, (ids, begins, ends) in enumerate(entries(tokens)):
        window, second = windows[j], tokens.second[j]
        context = ASKED["context"][tokens.example_of(np.array([j]))[0]]
        assert ids.tolist() == window.ids
        for place, part in enumerate(window.sequence_ids):
            begin, end = window.offsets[place]
            if part == 1:  # of blanks a tokenizer leaves more where a window begins
                assert begins[place] >= begin and ends[place] >= end
                assert context[begins[place] : ends[place]] == context[begin:end].strip()
            else:
                assert begins[place] == ends[place] == -1
        types = [int(place >= second) for place in range(len(ids))]
        assert types == window.type_ids


def test_characters_are_those_of_the_text_as_it_was_given(tokenizer):
    """Also where the tokenizer decomposes accents, or cuts characters into bytes."""
    tokens = tokens_of(tokenizer, max_length=400)
    _, begins, ends = next(entries(tokens))
    pieces = {CONTEXT[b:e] for b, e in zip(begins, ends, strict=True) if b >= 0}
    covered = {c for b, e in zip(begins, ends, strict=True) if b >= 0 for c in range(b, e)}
    assert all(c in covered for c, char in enumerate(CONTEXT) if char.isalnum())
    # Whole words, or single characters whose bytes are tokens of their own.
    assert "Zoë" in pieces if isinstance(tokenizer.model, models.WordPiece) else "👩" in pieces


def test_labels_are_the_tokens_of_the_answer_in_the_windows_that_hold_it(tokenizer):
    tokens, source = tokens_of(tokenizer), table("q.jsonl", ASKED)
    targets = read_answers(source, "answers", "context")
    assert targets.answered.tolist() == [True, True, True, False, False]
    for pack in (True, False):
        plan = plan_evaluation(tokens.lengths, batch_size=2, pack=pack)
        batches = TextBatches(tokens, targets, plan)
        found = {}
        for batch in map(batches.__getitem__, range(len(batches))):
            for row, slot in zip(*np.nonzero(batch["index"] >= 0), strict=True):
                place = int(batch["index"][row, slot]), int(batch["window"][row, slot])
                first, last = (int(batch[name][row, slot]) for name in ("first", "last"))
                start = batch["starts"][row, slot]
                found[place] = (
                    None if first == start
                    else (int(batch["begins"][row, first]), int(batch["ends"][row, last]))
                )  # fmt: skip
                assert (first == start) == (last == start)
        assert len(found) == len(tokens)
        for example in range(5):
            held = [span for place, span in found.items() if place[0] == example and span]
            assert len(set(held)) == (1 if targets.answered[example] else 0), example
            for begin, end in held:
                text = ASKED["context"][example][begin:end]
                wanted = (targets.begins[example], targets.ends[example])
                assert (
                    begin <= wanted[0] and end >= wanted[1] and len(text) <= wanted[1] - begin + 2
                )


def test_tokens_are_kept_for_the_same_texts_and_settings_alone(tokenizer, tmp_path):
    made = tokens_of(tokenizer, tmp_path)
    again = tokens_of(tokenizer, tmp_path)
    assert not made.cached and again.cached and made.fingerprint == again.fingerprint
    assert all(
        (a == b).all()
        for one, other in zip(entries(made), entries(again), strict=True)
        for a, b in zip(one, other, strict=True)
    )
    assert not tokens_of(tokenizer, tmp_path, stride=5).cached
    assert not tokens_of(tokenizer, tmp_path, max_length=25).cached


def test_ranges_of_windows():
    assert window_ranges(11, 6, 2) == [(0, 6), (4, 10), (8, 11)]
    assert window_ranges(6, 6, 5) == [(0, 6)] and window_ranges(7, 6, 5) == [(0, 6), (1, 7)]
    assert window_ranges(12, 6, 0) == [(0, 6), (6, 12)]


def test_a_question_that_leaves_no_room_is_named():
    asked = {"question": ["a?", "nothing " * 20], "context": [CONTEXT] * 2}
    with pytest.raises(ValueError, match=r"q.jsonl, row 2: the question .*max_length=24.*stride=6"):
        tokens_of(wordpiece(), asked=asked)
    with pytest.raises(ValueError, match="row 1: the question .*windows overlap"):
        tokens_of(wordpiece(), stride=22)


@pytest.mark.parametrize(
    "value, expected",
    [
        ({"text": ["a", "b"], "answer_start": [3, 7]}, [("a", 3), ("b", 7)]),
        ({"text": np.array(["a"], object), "answer_start": np.array([3])}, [("a", 3)]),
        ({"text": "a", "answer_start": 3}, [("a", 3)]),
        ({"text": [], "answer_start": []}, []),
        ([{"text": "a", "answer_start": 3}], [("a", 3)]),
        ([{"text": "a"}, "b"], [("a", None), ("b", None)]),
        ('{"text": ["a"], "answer_start": [3]}', [("a", 3)]),
        ('["a"]', [("a", None)]),
        ("[sic]", [("[sic]", None)]),
        ("a", [("a", None)]),
        ("", []),
        ([], []),
    ],
)
def test_answers_come_in_many_forms(value, expected):
    assert answers_of(value) == expected


@pytest.mark.parametrize(
    "value, message",
    [
        (None, "column 'answers' has no answers .None."),
        (4, "column 'answers' has no answers .4."),
        ({"text": ["a"], "answer_start": []}, "'text' and 'answer_start' are not as many"),
        ({"texts": ["a"]}, "'text' and 'answer_start' are not as many"),
        ([""], "holds '' as an answer, which is no text"),
        ([{"text": "was", "answer_start": 3.5}], "holds 3.5 as a place"),
        ([{"text": "was", "answer_start": 4}], "'was' is at character 4 .* 'as ' is .it is at 3;"),
        ("were", "holds 'were', which is not in the context"),
        ("a", "holds 'a', which is 3 times in the context: give 'answer_start'"),
    ],
)
def test_what_is_no_answer_is_named_or_left_out(value, message):
    rows = {"context": ["It was a day."] * 3, "answers": ["was", value, value]}
    source = table("q.jsonl", rows)
    with pytest.raises(ValueError, match=f"q.jsonl, row 2: .*{message}.*; 2 rows are like this"):
        read_answers(source, "answers", "context", advice=" somehow")
    kept = read_answers(source, "answers", "context", drop_bad=True)
    assert kept.rows.tolist() == [0] and kept.dropped.tolist() == [1, 2]
    assert (kept.begins[0], kept.ends[0]) == (3, 6) and list(kept.texts) == [["was"]]


def test_answers_can_be_read_from_json():
    text = json.dumps({"text": ["day"], "answer_start": [9]})
    source = table("q.csv", {"context": ["It was a day."], "answers": [text]})
    assert read_answers(source, "answers", "context").begins.tolist() == [9]
