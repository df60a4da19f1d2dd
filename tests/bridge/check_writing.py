"""Texts of bridged models against transformers' `generate`, and encoders and decoders from data to export."""

from __future__ import annotations

import collections
import csv
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers, processors

from jaxft import evaluate, export, load, predict, train
from jaxft.config import default_config, override
from jaxft.experiment.encoder import Slicing, make_encoder
from jaxft.experiment.prepared import prepare
from jaxft.generation.decoding import Settings, generate
from jaxft.generation.encoder_decoder import generate as given_texts
from jaxft.generation.sampling import Sampling
from jaxft.generation.search import Beams, Ending
from jaxft.models import by_path, hf, load_architecture
from jaxft.tasks.table import TASKS
from tests import tiny, worlds
from tests.tasks.test_seq2seq import rows_of, write

pytestmark = pytest.mark.slow
VOCABULARY, NEW = 97, 12
_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
          "intermediate_size": 48, "max_position_embeddings": 64,
          # At the usual spread tiny models say one or two tokens, with margins that are rounding.
          "initializer_range": 0.5}  # fmt: skip
# Learned positions counted by the mask, alibi in two forms, rotary ones of all, part and pairs of a head,
# and a state in place of attention.
DECODERS = {
    "opt": {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 1, "ffn_dim": 48,
            "num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 32,
            "init_std": 0.5},
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4,
              "initializer_range": 0.5},
    "falcon": {**_SIZES, "alibi": True},
    "gpt_neox": _SIZES,
    "gptj": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
             "rotary_dim": 4, "initializer_range": 0.5},
    "phi": _SIZES,
    "stablelm": {**_SIZES, "num_key_value_heads": 4},
    "olmo": _SIZES,
    "mamba": {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 1, "state_size": 4,
              "initializer_range": 0.5},
}  # fmt: skip
LENGTHS = (5, 9, 1, 18, 17, 3, 12)  # of prompts, for three sequences


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("writing")


@functools.cache
def decoder(name, place):
    """(transformers' model, our architecture, its parameters)"""
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(name, **DECODERS[name])
    # Falcon's alibi is another with torch's fused attention.
    auto = transformers.AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager").eval()
    model.generation_config.eos_token_id = None
    model.save_pretrained(place / name)
    architecture = load_architecture(
        str(place / name), num_labels=0, head="causal", implementation="bridge"
    )
    params, _ = hf.read_params(str(place / name), architecture, key=jax.random.key(0))
    return model, architecture, params


def prompts():
    rng = np.random.default_rng(0)
    return [rng.integers(3, VOCABULARY, length).tolist() for length in LENGTHS]


def torch_texts(model):
    """Each prompt alone, and the least by which a chosen token was ahead of the next."""
    found, margin = [], np.inf
    for prompt in prompts():
        said = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), pad_token_id=0,
            do_sample=False, max_new_tokens=NEW, output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
        found.append(said.sequences[0, len(prompt) :].tolist())
        best = torch.cat(said.scores).topk(2).values
        margin = min(margin, float((best[:, 0] - best[:, 1]).min()))
    return found, margin


def same_texts(name, place):
    """That greedy texts, of prompts of several lengths at a time, are those of transformers."""
    model, architecture, params = decoder(name, place)
    expected, margin = torch_texts(model)
    assert margin > 1e-4 and len({token for text in expected for token in text}) > 10
    assert generate(architecture, params, prompts(), Settings(NEW, sequences=3)) == expected
    eos = expected[0][4]
    ended = generate(architecture, params, prompts(), Settings(NEW, eos=(eos,), sequences=3))
    for text, whole in zip(ended, expected, strict=True):
        assert text == (whole[: whole.index(eos) + 1] if eos in whole else whole)


@pytest.mark.parametrize("name", [name for name in DECODERS if name != "opt"])
def test_greedy_texts_are_those_of_transformers(place, name):
    same_texts(name, place)


def test_draws_depend_on_seed_and_prompt_alone(place):
    _, architecture, params = decoder("gpt_neox", place)
    sampling = Sampling(temperature=1.3, top_k=40, repetition_penalty=1.2, seed=5)
    found = generate(architecture, params, prompts(), Settings(NEW, sampling, sequences=3))
    assert found == generate(architecture, params, prompts(), Settings(NEW, sampling, sequences=8))
    same = generate(architecture, params, [prompts()[0]] * 2, Settings(NEW, sampling))
    assert same[0] == found[0] and same[1] != same[0]


_BASE = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
         "max_position_embeddings": 40, "init_std": 0.5, "pad_token_id": 1, "eos_token_id": 2}  # fmt: skip
# model type -> (settings, what generation_config.json says, the tokens that its tokenizer puts around)
BOTH = {
    "bart": (_BASE, {"forced_bos_token_id": 0, "forced_eos_token_id": 2}, "<s> $A </s>"),
    "mbart": (_BASE, {"forced_bos_token_id": 4, "decoder_start_token_id": 2}, "en $A </s>"),
    "marian": ({**_BASE, "decoder_start_token_id": 1}, {"bad_words_ids": [[1]]}, "$A </s>"),
    "m2m_100": ({**_BASE, "decoder_start_token_id": 2}, {}, "en $A </s>"),
    "pegasus": ({**_BASE, "decoder_start_token_id": 1}, {}, "$A </s>"),
    "umt5": ({"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
              "initializer_factor": 3.0, "pad_token_id": 1, "eos_token_id": 2,
              "decoder_start_token_id": 1}, {}, "$A </s>"),
}  # fmt: skip
SPECIAL = ("<s>", "<pad>", "</s>", "en", "ro")


@functools.cache
def checkpoint(name, place):
    """A directory with a model of random weights and a tokenizer of tiny's words, and PyTorch's model."""
    settings, generation, template = BOTH[name]
    folder = place / name
    words = {word: n for n, word in enumerate((*SPECIAL, *sum(tiny.WORDS.values(), [])))}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, vocab_size=len(words), **settings)
    auto = transformers.AutoModelForSeq2SeqLM
    model = auto.from_config(config, attn_implementation="eager").eval()
    for key, value in generation.items():
        setattr(model.generation_config, key, value)
    model.save_pretrained(folder)
    tokenizer = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(SPECIAL))
    special = [(part, words[part]) for part in template.split() if part in words]
    tokenizer.post_processor = processors.TemplateProcessing(template, special_tokens=special)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder, model


def until(end, tokens):
    found = [int(token) for token in tokens]
    return found[: found.index(end) + 1] if end in found else found


@pytest.mark.parametrize("name", BOTH)
def test_what_is_given_for_a_text_is_what_transformers_gives(place, name):
    folder, model = checkpoint(name, place)
    mask = np.arange(11) < np.array([11, 4, 7, 3, 9, 5])[:, None]
    ids = np.random.default_rng(0).integers(5, model.config.vocab_size, mask.shape)
    given = {"attention_mask": torch.tensor(mask.astype(int)), "do_sample": False,
             "input_ids": torch.tensor(np.where(mask, ids, 1)), "max_new_tokens": NEW}  # fmt: skip
    said = model.generation_config
    before, said.eos_token_id, said.forced_eos_token_id = said.to_dict(), None, None
    plain = model.generate(**given)[:, 1:]
    seen = collections.Counter(token for row in plain[:, 3:7].tolist() for token in set(row))
    end = max(seen, key=lambda token: (seen[token] < 6, seen[token]))
    said.eos_token_id = end
    said.forced_eos_token_id = before.get("forced_eos_token_id") and end
    architecture = load_architecture(
        str(folder), num_labels=0, head="seq2seq", implementation="bridge"
    )
    params, _ = hf.read_params(str(folder), architecture, key=jax.random.key(0))
    batch = {"input_ids": jnp.asarray(ids), "segment_ids": jnp.asarray(mask, jnp.int32)}
    never = tuple(word for (word,) in said.bad_words_ids or ())
    ending = Ending(NEW, end, 0, said.forced_bos_token_id, said.forced_eos_token_id, never)
    start = said.decoder_start_token_id
    for beams in (None, Beams(3), Beams(2, length_penalty=0.5, early_stopping=True)):
        how = {} if beams is None else {
            "num_beams": beams.count, "length_penalty": beams.length_penalty,
            "early_stopping": beams.early_stopping,
        }  # fmt: skip
        run = jax.jit(
            lambda p, b, beams=beams: given_texts(architecture, p, b, start, ending, beams)
        )
        expected = [until(end, row) for row in model.generate(**given, **how)[:, 1:]]
        assert [until(end, row) for row in run(params, batch)] == expected
    said.eos_token_id, said.forced_eos_token_id = (
        before["eos_token_id"],
        before.get("forced_eos_token_id"),
    )


def config_of(place, name, **more):
    write(place / "train.csv")
    write(place / "test.csv", 30, seed=9)
    folder, _ = checkpoint(name, place)
    fields = {
        "task": "seq2seq", "model.path": str(folder), "model.dropout": 0.0,
        "data": {"train": str(place / "train.csv"), "test": str(place / "test.csv")},
        "data.max_target_length": 8, "data.max_shapes": 1, "train.compile_cache": "",
        "train.batch_size": 16, "optim.lr": 3e-3, "eval.generate": 12, "parallel.mode": "jit",
        "log.tensorboard": False, **more,
    }  # fmt: skip
    return override(default_config(), fields)


@pytest.mark.parametrize("name", ["bart", "mbart", "marian"])
def test_loss_and_gradients_are_those_of_its_class_given_labels(place, name):
    config = config_of(place, name)
    prepared = prepare(config)
    architecture = prepared.architecture
    params, _ = hf.read_params(prepared.directory, architecture, key=jax.random.key(0))
    encoder = make_encoder(
        config, prepared.task.inputs, prepared.directory, architecture.limits, prepared.splits, None
    )
    batch = encoder.training(prepared.splits.train, config, 1, Slicing())[0]
    arrays = {key: jnp.asarray(x) for key, x in batch.items()}

    def mean(params):
        total, weight = TASKS["seq2seq"].loss(architecture.apply(params, arrays), arrays, 0.0)
        return total / weight

    loss, gradients = jax.jit(jax.value_and_grad(mean))(params)
    real = batch["index"][:, 0] >= 0
    read, answered = (batch[f"{side}segment_ids"][real] > 0 for side in ("", "decoder_"))
    labels = batch["labels"][real]
    assert {tuple(row[mask][[0, -1]]) for row, mask in zip(labels, answered, strict=True)} == {
        "bart": {(0, 2)}, "mbart": {(4, 2)}  # in the language that is asked for
    }.get(name) or set(labels[answered][-1:]) == {2}  # fmt: skip
    auto = transformers.AutoModelForSeq2SeqLM
    model = auto.from_pretrained(prepared.directory, attn_implementation="eager").eval()
    theirs = model(
        input_ids=torch.tensor(np.where(read, batch["input_ids"][real], 1)).long(),
        attention_mask=torch.tensor(read).long(),
        labels=torch.tensor(np.where(answered, labels, -100)).long(),
    ).loss
    theirs.backward()
    assert float(loss) == pytest.approx(theirs.item(), rel=1e-5)
    found, seen = {path.replace("/", "."): x for path, x in by_path(gradients).items()}, 0
    largest = max(float(x.grad.abs().max()) for x in model.parameters() if x.grad is not None)
    for key, x in model.named_parameters():
        if x.grad is None:
            continue
        scale = max(float(x.grad.abs().max()), 1e-3, 1e-3 * largest)  # that of key biases is 0
        assert np.abs(np.asarray(found[key]) - x.grad.numpy()).max() <= 1e-4 * scale, key
        seen += 1
    assert seen > 30


def test_a_run_learns_and_its_export_gives_the_same_in_transformers(place, tmp_path, capsys):
    changes = {
        "train.steps": 150,
        "eval.every": "50%",
        "checkpoint.every_steps": 50,
        "eval.beams": 2,
    }
    config = config_of(place, "bart", **changes)
    train(config, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["test"]
    assert summary["accuracy"] > 0.6 and summary["rougeL"] > 0.3 and summary["generated"] == 12
    run, out = str(tmp_path / "run"), tmp_path / "out"
    assert export.main(["export", f"--run={run}", f"--output={out}", "--verify=4"]) == 0
    certificate = json.loads((out / "certificate.json").read_text())
    assert certificate["exported"]["largest difference"] == 0
    assert certificate["pytorch"]["largest difference"] < 1e-4
    capsys.readouterr()
    said = tmp_path / "said.csv"
    command = ["predict", f"--run={run}", f"--input={place / 'test.csv'}", f"--output={said}"]
    assert predict.main([*command, "--text", "source"]) == 0
    assert "bart is bridged and writes without a cache" in capsys.readouterr().err
    rows = list(csv.DictReader(said.read_text().splitlines()))
    given = [row for row in rows_of(Path(run) / "predictions/test.jsonl") if "predicted" in row]
    texts = {row["source"]: row["predicted_text"] for row in rows}
    assert all(texts[row["text"]] == row["predicted"] for row in given)
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    batch = tokenizer([row["source"] for row in rows], return_tensors="pt", padding=True)
    ids = theirs.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=8,
        num_beams=2, do_sample=False,
    )  # fmt: skip
    decoded = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert decoded == [row["predicted_text"] for row in rows]
    # An exported checkpoint is evaluated as what it is.
    metrics = tmp_path / "metrics.json"
    data = f"--data={place / 'test.csv'}"
    assert evaluate.main(["evaluate", f"--run={out}", data, f"--output={metrics}"]) == 0
    assert json.loads(metrics.read_text())["loss"] == pytest.approx(summary["loss"], rel=1e-5)
    # It knows nothing of the run's beams and length: it writes what is likeliest, as far as positions go.
    ids = theirs.generate(
        **tokenizer(["film day"], return_tensors="pt"), num_beams=1, do_sample=False,
        max_new_tokens=theirs.config.max_position_embeddings,
    )  # fmt: skip
    (text,) = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert load(out).predict(["film day"])[0].text == text


def test_a_killed_run_ends_in_the_same_bits(place, tmp_path):
    config = config_of(place, "bart", **{"train.steps": 6, "eval.every": "100%",
                                         "checkpoint.every_steps": 2, "model.dropout": 0.1})  # fmt: skip
    train(config, tmp_path / "whole")
    original = worlds.Logs.train

    def crash(self, at, *rest):
        original(self, at, *rest)
        if at == 4:
            raise worlds.Crash

    with pytest.MonkeyPatch.context() as patch, pytest.raises(worlds.Crash):
        patch.setattr(worlds.Logs, "train", crash)
        train(override(config, {"train.log_every": 2}), tmp_path / "broken")
    train(override(config, {"train.log_every": 2}), tmp_path / "broken")
    worlds.assert_same_weights(tmp_path / "broken", tmp_path / "whole")


def test_more_tokens_than_positions_are_refused(place):
    with pytest.raises(ValueError, match="max_target_length=64 is above the 40 positions"):
        config = config_of(place, "bart", **{"data.max_target_length": 64})
        prepared = prepare(config)
        limits = prepared.architecture.limits
        make_encoder(config, "text to text", prepared.directory, limits, prepared.splits, None)
