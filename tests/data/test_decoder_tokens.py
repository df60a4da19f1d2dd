"""The tokens around texts that are given, by files of checkpoints and their tokenizers."""

import json

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from jaxft.data.decoder_tokens import Around, around, decoder_tokenizer

WORDS = {"<s>": 0, "<pad>": 1, "</s>": 2, "en": 3, "ro": 4, "a": 5, "b": 6}


def checkpoint(folder, template, config, generation=None):
    """Files with a tokenizer that puts these tokens around a text."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel(WORDS, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(WORDS)[:5])
    if template:
        special = [(name, WORDS[name]) for name in template.split() if name in WORDS]
        tokenizer.post_processor = processors.TemplateProcessing(template, special_tokens=special)
    tokenizer.save(str(folder / "tokenizer.json"))
    plain = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(plain))
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return str(folder)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"decoder_start_token_id": 5, "eos_token_id": [7, 8]}, None,
         Around(5, 7, 0, None, None, ())),
        ({"pad_token_id": 3, "decoder_start_token_id": None, "eos_token_id": None}, None,
         Around(3, None, 3, None, None, ())),
        ({}, None, Around(0, 1, 0, None, None, ())),
        ({"pad_token_id": 9, "eos_token_id": 2, "forced_bos_token_id": 7},
         {"forced_bos_token_id": None, "forced_eos_token_id": 2, "bad_words_ids": [[9], [3, 4], [2]]},
         Around(9, 2, 9, 7, 2, (9,))),
        ({"eos_token_id": 2}, {"decoder_start_token_id": 6, "forced_bos_token_id": [4]},
         Around(6, 2, 0, 4, None, ())),
    ],
)  # fmt: skip
def test_the_tokens_around_a_text_are_those_of_the_files(tmp_path, config, generation, expected):
    assert around(checkpoint(tmp_path, "", config, generation)) == expected


@pytest.mark.parametrize(
    ("template", "first", "expected", "start"),
    [
        ("", None, [5, 6, 2], 2),
        ("<s> $A </s>", None, [0, 5, 6, 2], 2),
        ("<s> $A </s>", 0, [0, 5, 6, 2], 2),
        ("</s> $A", None, [2, 5, 6, 2], 2),
        ("en $A </s>", None, [3, 5, 6, 2], 2),
        ("en $A </s>", 4, [4, 5, 6, 2], 2),  # what is to be given is in another language
        ("$A </s> en", None, [5, 6, 2, 3], 3),  # mBART's older tokenizer
    ],
)
def test_texts_begin_and_end_as_a_model_begins_and_ends_them(
    tmp_path, template, first, expected, start
):
    config = {"model_type": "mbart", "eos_token_id": 2, "forced_bos_token_id": first}
    folder = checkpoint(tmp_path, template, config)
    tokenizer = decoder_tokenizer(folder)
    assert tokenizer.encode("a b").ids == expected
    assert around(folder).start == start == expected[-1]  # its class puts the last one first
    tokenizer.enable_truncation(4)
    cut = tokenizer.encode("a b a b a b a b").ids
    assert len(cut) == 4 and cut[-1] == expected[-1]
