"""Generation with decoders against transformers' `generate`, and what must not matter to it."""

import functools

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxft import models
from jaxft.generation import sampling
from jaxft.generation.decoding import Settings, generate
from jaxft.generation.sampling import Sampling
from jaxft.models import hf
from tests import tiny

VOCABULARY, NEW = 97, 12
SIZES = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 40,
    # At the usual spread tiny models say one or two tokens, with margins that are rounding.
    "initializer_range": 0.5,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
NO_HEAD_DIM = {name: value for name, value in SIZES.items() if name != "head_dim"}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 30.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}
FAMILIES = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=64, n_embd=48, n_layer=2, n_head=4,
            initializer_range=0.5, bos_token_id=None, eos_token_id=None,
        )
    ),
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3)
    ),
    "mistral": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**SIZES, sliding_window=6)
    ),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            **NO_HEAD_DIM, use_sliding_window=True, sliding_window=5, max_window_layers=1
        )
    ),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**SIZES, tie_word_embeddings=True)
    ),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(
            **SIZES, sliding_window=5, attn_logit_softcapping=3.0, final_logit_softcapping=20.0,
            query_pre_attn_scalar=7, tie_word_embeddings=False,
        )
    ),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(
            **SIZES, sliding_window=5, layer_types=["sliding_attention", "full_attention"],
            query_pre_attn_scalar=7, tie_word_embeddings=False,
        )
    ),
}  # fmt: skip
# Seven prompts for three sequences: most of these begin where another text ended.
LENGTHS = (5, 9, 1, 30, 17, 3, 12)
FAST = ("gpt2", "gemma2")  # learned positions; rotary ones, grouped heads, a window, caps


@pytest.fixture(scope="module")
def tmp(tmp_path_factory):
    return tmp_path_factory.mktemp("decoders")


@functools.cache
def built(family, tmp):
    """(transformers' model, our architecture, its parameters)"""
    torch.manual_seed(1)
    model = FAMILIES[family]().eval()
    model.generation_config.eos_token_id = None
    model.save_pretrained(tmp / family)
    directory = str(tmp / family)
    architecture = models.load_architecture(directory, num_labels=0, head="causal")
    params, _ = hf.read_params(directory, architecture, key=jax.random.key(0))
    return model, architecture, params


@functools.cache
def prompts():
    rng = np.random.default_rng(0)
    return [rng.integers(1, VOCABULARY, length).tolist() for length in LENGTHS]


def torch_texts(model, **options):
    """Each prompt alone, and the least by which a chosen token was ahead of the next."""
    found, margin = [], np.inf
    for prompt in prompts():
        said = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), pad_token_id=0,
            do_sample=False, max_new_tokens=NEW, output_scores=True, return_dict_in_generate=True,
            **options,
        )  # fmt: skip
        found.append(said.sequences[0, len(prompt) :].tolist())
        for scores in said.scores:
            best = scores[0].topk(2).values
            margin = min(margin, float(best[0] - best[1]))
    return found, margin


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[pytest.mark.slow] * (f not in FAST)) for f in FAMILIES]
)
def test_greedy_texts_are_those_of_transformers(family, tmp):
    model, architecture, params = built(family, tmp)
    expected, margin = torch_texts(model)
    assert margin > 1e-4 and len({token for text in expected for token in text}) > 10
    assert generate(architecture, params, prompts(), Settings(NEW, sequences=3)) == expected


def test_a_repetition_penalty_is_that_of_transformers(tmp):
    model, architecture, params = built("gpt2", tmp)
    expected, margin = torch_texts(model, repetition_penalty=1.7)
    assert margin > 1e-4 and expected != torch_texts(model)[0]
    settings = Settings(NEW, Sampling(repetition_penalty=1.7), sequences=3)
    assert generate(architecture, params, prompts(), settings) == expected


def test_a_text_ends_with_any_of_the_ending_tokens(tmp):
    _, architecture, params = built("gpt2", tmp)
    whole = generate(architecture, params, prompts(), Settings(NEW, sequences=3))
    eos = (whole[0][4], whole[1][0])
    for text, ended in zip(
        whole,
        generate(architecture, params, prompts(), Settings(NEW, eos=eos, sequences=3)),
        strict=True,
    ):
        cut = next((n for n, token in enumerate(text) if token in eos), NEW)
        assert ended == text[: cut + 1]


def test_a_text_ends_with_the_token_that_completes_a_stop_string(tmp):
    _, architecture, params = built("gpt2", tmp)
    whole = generate(architecture, params, prompts(), Settings(NEW, sequences=3))

    def text(ids):
        return "".join(f"{token:02d}" for token in ids)

    string = text(whole[0][3:5])[1:]  # begins within a token
    stopped = generate(
        architecture,
        params,
        prompts(),
        Settings(NEW, stop=(string, "none"), sequences=3),
        text=text,
    )
    for full, cut in zip(whole, stopped, strict=True):
        ends = [n for n in range(1, NEW + 1) if string in text(full[:n])]
        assert cut == full[: ends[0]] if ends else cut == full
    assert len(stopped[0]) < NEW


def test_draws_depend_on_seed_and_prompt_alone(tmp):
    """Not on how many are computed at a time, how long the others are, nor on who goes first."""
    _, architecture, params = built("gpt2", tmp)
    settings = Settings(NEW, Sampling(temperature=1.3, top_k=40, min_p=0.001, seed=5), sequences=3)
    found = generate(architecture, params, prompts(), settings)
    both = generate(architecture, params, prompts(), Settings(NEW, settings.sampling, sequences=8))
    assert found == both
    other = Settings(NEW, Sampling(temperature=1.3, top_k=40, min_p=0.001, seed=6), sequences=3)
    assert found != generate(architecture, params, prompts(), other)
    same = generate(architecture, params, [prompts()[0]] * 2, settings)
    assert same[0] != same[1]  # two draws of one prompt


@pytest.mark.parametrize(
    "settings",
    [
        Sampling(temperature=0.7, top_k=5),
        Sampling(temperature=1.5, top_p=0.8),
        Sampling(temperature=1.0, min_p=0.3),
        Sampling(temperature=2.0, top_k=20, top_p=0.9, min_p=0.02),
    ],
)
def test_filters_leave_what_those_of_transformers_leave(settings):
    logits = np.random.default_rng(0).normal(size=(4, VOCABULARY)).astype(np.float32) * 2
    warpers = transformers.LogitsProcessorList()
    warpers.append(transformers.TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        warpers.append(transformers.TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        warpers.append(transformers.TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        warpers.append(transformers.MinPLogitsWarper(settings.min_p))
    expected = warpers(torch.zeros(4, 1, dtype=torch.long), torch.tensor(logits)).numpy()
    found = sampling.filtered(logits / settings.temperature, settings.structure, settings.numbers)
    assert np.isneginf(expected).any()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_draws_have_the_probabilities_that_the_filters_leave():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    settings = Sampling(temperature=1.0, top_p=0.9)
    count = 4000
    drawn = sampling.choose(
        np.tile(logits, (count, 1)), np.arange(count), np.zeros(count, np.int32), None,
        settings.structure, settings.numbers,
    )  # fmt: skip
    shares = np.bincount(drawn, minlength=4) / count
    np.testing.assert_allclose(shares, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0], atol=0.03)


def test_what_cannot_be_generated_is_one_line(tmp):
    _, architecture, params = built("gpt2", tmp)
    for given, message in (
        ([[1, 2], []], "prompt 2 has no token"),
        ([[1] * 60], r"prompt 1 has 60 tokens; .* more than the 64 positions .* at most 4 new"),
        ([[1, VOCABULARY]], f"not from 0 to {VOCABULARY - 1}"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(architecture, params, given, Settings(NEW))
    with pytest.raises(ValueError, match="head for 'sequence' does not predict the next token"):
        other = models.load_architecture(str(tmp / "gpt2"), num_labels=2)
        generate(other, params, [[1]], Settings(NEW))
    with pytest.raises(ValueError, match="'t5' writes .* predict, without max_new_tokens"):
        t5 = models.load_architecture(tiny.t5(tmp / "t5"), num_labels=0, head="seq2seq")
        generate(t5, params, [[1]], Settings(NEW))
    with pytest.raises(ValueError, match="need the tokenizer"):
        generate(architecture, params, [[1]], Settings(NEW, stop=(".",)))
    for wrong in ({"top_p": 0.0}, {"temperature": -1}, {"top_k": 1.5}, {"min_p": 2}):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))} is .*; it must be "):
            Sampling(**wrong)
    for wrong in ({"max_new_tokens": 0}, {"sequences": True}, {"stop": "ab"}):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))} is "):
            Settings(**wrong)
    assert generate(architecture, params, [], Settings(NEW)) == []
