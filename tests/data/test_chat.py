"""Conversations in their shapes, what is none, and which of their tokens are completions."""

import json

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxft.data.chat import (
    NoConversation,
    conversation_of,
    find_chat_columns,
    prompt_of,
    read_conversations,
    shown_chat,
)
from jaxft.data.chat_template import load_template
from jaxft.data.conversations import tokenize_conversations
from jaxft.data.files import table
from jaxft.data.tokenizer import load_tokenizer

USER, BOT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is new?"},
    {"role": "assistant", "content": "Nothing much.\nAnd you?"},
    {"role": "user", "content": "Grüße!"},
    {"role": "assistant", "content": "Bye."},
]
PLAIN = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{{ m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>\\n' }}{% endgeneration %}{% else %}"
    "{{ m['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Only the last answer is written with its thoughts, as some checkpoints do.
BROKEN = PLAIN.replace("{{ m['content']", "{{ '<think>' if loop.last }}{{ m['content']")
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator(["User: Assistant: What is new? Nothing much. Bye. hello"] * 3, trainer)
    whole = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>")
    whole.save_pretrained(folder)
    return folder


def with_template(directory, tmp_path, source):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((directory / name).read_text())
    if source:
        (tmp_path / "chat_template.jinja").write_text(source)
    tokenizer = load_tokenizer(str(tmp_path))
    return tokenizer, load_template(str(tmp_path), tokenizer)


def tokens_of(
    tokenizer, template, talks, *, columns=("messages",), max_length=400, only=True, **more
):
    source = table("t.jsonl", {name: list(talks) for name in columns})
    return tokenize_conversations(
        source, np.arange(len(talks)), columns, tokenizer, template, completions_only=only,
        max_length=max_length, vocab_size=1000, cache_dir=more.get("cache_dir"),
    )  # fmt: skip


# Shapes


@pytest.mark.parametrize(
    "values, expected",
    [
        (([USER, BOT],), [USER, BOT]),
        ((json.dumps([USER, BOT]),), [USER, BOT]),
        ((np.array([USER, BOT]),), [USER, BOT]),
        (([{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}],), [USER, BOT]),
        (([{"role": "user", "content": [{"type": "text", "text": "hi"}]}, BOT],), [USER, BOT]),
        (("hi", "hello"), [USER, BOT]),
        (([USER], [BOT]), [USER, BOT]),
        (("hi", "", "hello"), [USER, BOT]),
        (("hi", None, "hello"), [USER, BOT]),
        (("hi", "there", "hello"), [{"role": "user", "content": "hi\n\nthere"}, BOT]),
        ((3, 4.5), [{"role": "user", "content": "3"}, {"role": "assistant", "content": "4.5"}]),
    ],
)
def test_every_shape_is_messages(values, expected):
    assert conversation_of(values) == expected
    assert shown_chat(values).startswith("user: ")


def test_columns_are_found():
    assert find_chat_columns(table("t", {"id": [1], "messages": [[]]})) == ("messages",)
    alpaca = {"output": ["a"], "input": ["a"], "instruction": ["a"]}
    assert find_chat_columns(table("t", alpaca)) == ("instruction", "input", "output")
    assert find_chat_columns(table("t", {"q": ["a"], "a": ["a"]}), ("q", "a")) == ("q", "a")
    with pytest.raises(ValueError, match="no columns of a conversation .*among text, label; name"):
        find_chat_columns(table("t", {"text": ["a"], "label": ["a"]}))


@pytest.mark.parametrize(
    "values, message",
    [
        (([{"content": "hi"}, BOT],), "message 1 without a role .it has 'content'"),
        (
            ([USER, {"role": "asistant", "content": "x"}],),
            "role 'asistant'; .*did you mean 'assistant'",
        ),
        (
            ([USER, {"role": "assistant", "content": " "}],),
            "message 2, of the assistant, that is empty",
        ),
        (([USER, {"role": "assistant"}],), "message 2 without a text as content"),
        (([USER],), "no message of the assistant"),
        (([],), "has no messages"),
        (("hello there",), "no list of messages"),
        ((["hi", "hello"],), "'hi' as message 1, which has no role"),
        (
            ([{"role": "user", "content": [{"type": "image"}]}, BOT],),
            "a part that is no text .'image'",
        ),
        (("hi", None), "no text as the completion .None"),
        (("hi", "", ""), "an empty output"),
        (("hi", "a\ud800"), "half of a surrogate pair"),
    ],
)
def test_what_is_no_conversation_is_one_line_and_can_be_left_out(values, message):
    rows = [values, ([USER, BOT],) if len(values) == 1 else ("hi",) * len(values)]
    columns = ("a", "b", "c")[: len(values)]
    source = table("t.jsonl", {name: [row[i] for row in rows] for i, name in enumerate(columns)})
    with pytest.raises(ValueError, match=rf"t.jsonl, .* 1: .*{message}.*advice") as error:
        read_conversations(source, columns, advice=" by advice")
    assert "\n" not in str(error.value)
    found = read_conversations(source, columns, drop_bad=True)
    assert found.rows.tolist() == [1] and found.dropped.tolist() == [0]


def test_a_prompt_is_what_the_assistant_has_not_answered():
    assert prompt_of(([USER, BOT],)) == [USER] == prompt_of(("hi", None)) == prompt_of(("hi", ""))
    assert prompt_of(([USER, BOT, USER],)) == [USER, BOT, USER]
    with pytest.raises(NoConversation, match="no message to answer"):
        prompt_of(([BOT],))


# Templates and tokens


@pytest.mark.parametrize("source", [MARKED, PLAIN, ""])
def test_completions_are_those_of_apply_chat_template(directory, tmp_path, source):
    tokenizer, template = with_template(directory, tmp_path, source)
    assert template.own == bool(source)
    talks = [TALK, TALK[1:3], [USER, BOT, BOT]]
    tokens = tokens_of(tokenizer, template, talks)
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
    marked = template.source if source != PLAIN else MARKED
    for j, talk in enumerate(talks):
        expected = reference.apply_chat_template(
            talk, chat_template=marked, return_assistant_tokens_mask=True, return_dict=True
        )
        own = slice(*tokens.offsets[j : j + 2])
        assert tokens.ids[own].tolist() == expected["input_ids"]
        counted = tokens.extra["counted"][own]
        assert (counted > 0).astype(int).tolist() == expected["assistant_masks"]
        assert (counted == 2).sum() == sum(message["role"] == "assistant" for message in talk)
        # What is learned first is what follows the prompt.
        assert template.text(talk).startswith(template.prompt(talk[:-1]))
    assert not tokens.cut
    every = tokens_of(tokenizer, template, talks, only=False)
    assert (every.extra["counted"] == 1).all() and (every.ids == tokens.ids).all()


def test_a_plain_template_ends_answers_with_the_end_of_a_text(directory, tmp_path):
    _, template = with_template(directory, tmp_path, "")
    assert template.text(TALK[1:]) == (
        "User: What is new?\nAssistant: Nothing much.\nAnd you?</s>\nUser: Grüße!\nAssistant: Bye.</s>\n"
    )
    assert template.prompt([USER]) == "User: hi\nAssistant:"


def test_a_template_that_writes_answers_otherwise_later_is_refused(directory, tmp_path):
    tokenizer, template = with_template(directory, tmp_path, BROKEN)
    with pytest.raises(
        ValueError, match="t.jsonl, .* 1: .*message 3 otherwise.*generation.*loss_on='all'"
    ):
        tokens_of(tokenizer, template, [TALK])
    tokens_of(tokenizer, template, [TALK], only=False)
    tokenizer, template = with_template(directory, tmp_path, STRICT)
    with pytest.raises(ValueError, match=r"t.jsonl, .* 1: the chat template refuses it .no system"):
        tokens_of(tokenizer, template, [TALK])


def test_what_is_cut_is_counted_and_all_cut_is_a_mistake(directory, tmp_path):
    tokenizer, template = with_template(directory, tmp_path, MARKED)
    whole = tokens_of(tokenizer, template, [TALK])
    last = int(np.flatnonzero(whole.extra["counted"] == 2)[-1])
    for length, lost in ((last + 1, 0), (last, 1), (last - 20, 1), (40, 2)):
        tokens = tokens_of(tokenizer, template, [TALK, [USER, BOT]], max_length=length)
        assert (tokens.cut, tokens.lengths[0]) == (lost, length), length
    with pytest.raises(ValueError, match="every completion lies beyond the first 8 tokens"):
        tokens_of(tokenizer, template, [TALK], max_length=8)


def test_tokens_are_kept_under_template_and_messages(directory, tmp_path):
    tokenizer, template = with_template(directory, tmp_path, MARKED)
    cache = {"cache_dir": str(tmp_path / "cache")}
    made = tokens_of(tokenizer, template, [TALK], **cache)
    again = tokens_of(tokenizer, template, [TALK], **cache)
    assert again.cached and not made.cached and again.fingerprint == made.fingerprint
    assert not tokens_of(tokenizer, template, [TALK[:3]], **cache).cached
    assert not tokens_of(tokenizer, template, [TALK], only=False, **cache).cached
    _, other = with_template(directory, tmp_path, PLAIN)
    assert not tokens_of(tokenizer, other, [TALK], **cache).cached
