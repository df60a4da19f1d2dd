"""Bridged models with rows for more tokens than their checkpoint has, against PyTorch's own resizing."""

from __future__ import annotations

import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from safetensors.numpy import load_file

from jaxft import export, train
from jaxft.models import by_path, hf, load_architecture
from jaxft.models.checkpoint import companions
from tests import worlds

OLD, NEW = 60, 67
_BASE = {"vocab_size": OLD, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
         "intermediate_size": 48, "max_position_embeddings": 40}  # fmt: skip
_BOTH = {"vocab_size": OLD, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
         "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
         "decoder_ffn_dim": 48, "max_position_embeddings": 40, "pad_token_id": 0}  # fmt: skip
# model type -> (kind of head, settings, tensors that grow)
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "albert": ("masked", {**_BASE, "embedding_size": 16}, 2),
    "bart": ("seq2seq", {**_BOTH, "decoder_start_token_id": 2}, 2),
    "mbart": ("causal", {**_BOTH, "is_decoder": True}, 1),
    # Of its output, the columns of a matrix are of tokens.
    "mobilebert": ("masked", {**_BASE, "embedding_size": 16, "intra_bottleneck_size": 16}, 3),
    "opt": ("causal", {"vocab_size": OLD, "hidden_size": 32, "num_hidden_layers": 1,
                       "num_attention_heads": 4, "ffn_dim": 48, "max_position_embeddings": 40,
                       "word_embed_proj_dim": 16}, 1),
    "bloom": ("sequence", {"vocab_size": OLD, "hidden_size": 32, "n_layer": 1, "n_head": 4,
                           "pad_token_id": 3}, 1),
    "mpnet": ("masked", _BASE, 2),
    "xlnet": ("sequence", {"vocab_size": OLD, "d_model": 32, "n_layer": 1, "n_head": 4,
                           "d_inner": 48}, 1),
    "funnel": ("masked", {"vocab_size": OLD, "d_model": 32, "block_sizes": [1, 1], "n_head": 4,
                          "d_head": 8, "d_inner": 48}, 2),
    "gpt_neox": ("causal", _BASE, 2),
    "mt5": ("seq2seq", {"vocab_size": OLD, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1,
                        "num_heads": 4, "decoder_start_token_id": 0}, 1),
    "rembert": ("masked", {**_BASE, "input_embedding_size": 16, "output_embedding_size": 24}, 3),
    # The vocabulary is that of a config inside.
    "gemma3": ("causal", {
        "text_config": {**_BASE, "head_dim": 8, "num_key_value_heads": 2},
        "vision_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
                          "intermediate_size": 48, "image_size": 28}}, 1),
}  # fmt: skip
AUTOS = {
    "sequence": transformers.AutoModelForSequenceClassification,
    "causal": transformers.AutoModelForCausalLM,
    "masked": transformers.AutoModelForMaskedLM,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
}
FAST = ("mobilebert",)


def saved(place, name):
    """A checkpoint of random weights that are not small, biases among them."""
    kind, settings, _ = CASES[name]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, **settings)
    model = AUTOS[kind].from_config(config)
    with torch.no_grad():
        for x in (*model.parameters(), *(b for n, b in model.named_buffers() if "bias" in n)):
            x.add_(torch.randn_like(x) * 0.1)
    model.save_pretrained(place)


def loaded(place, kind, vocabulary):
    architecture = load_architecture(
        str(place), num_labels=2 if kind == "sequence" else 0, head=kind, vocabulary=vocabulary,
        implementation="bridge",
    )  # fmt: skip
    params, report = hf.read_params(str(place), architecture, key=jax.random.key(0))
    assert not report.initialised
    return architecture, params


def resized(place, kind, leaves):
    """PyTorch's own, with the new rows that are in `leaves`."""
    model = AUTOS[kind].from_pretrained(place, attn_implementation="eager").eval()
    model.resize_token_embeddings(NEW)
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for path, leaf in leaves.items():
            x = own[path.replace("/", ".")]
            assert x.shape == leaf.shape, path
            for axis in range(x.ndim):
                if x.shape[axis] == NEW:
                    new = torch.from_numpy(np.array(leaf)).narrow(axis, OLD, NEW - OLD)
                    x.narrow(axis, OLD, NEW - OLD).copy_(new)
    return model


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_tables_grow_as_transformers_grows_them(tmp_path, name):
    kind, _, count = CASES[name]
    source, output = tmp_path / "in", tmp_path / "out"
    saved(source, name)
    small, before = loaded(source, kind, OLD)
    assert not small.grown and "new tokens" not in small.note
    architecture, params = loaded(source, kind, NEW)
    assert len(architecture.grown) == count and "rows for new tokens" in architecture.note
    old, leaves = by_path(before), by_path(params)
    for path, leaf in leaves.items():
        kept = tuple(slice(size) for size in old[path].shape)
        np.testing.assert_array_equal(leaf[kept], old[path], err_msg=path)
        assert (leaf.shape != old[path].shape) == (path in architecture.grown)
    hf.write_checkpoint(
        str(output), architecture, params, id2label={n: f"l{n}" for n in range(architecture.num_labels)},
        source=str(source), unchanged=frozenset(leaves),
    )  # fmt: skip
    theirs, report = AUTOS[kind].from_pretrained(
        output, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[part] for part in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = resized(source, kind, leaves)
    assert theirs.config.get_text_config().vocab_size == NEW
    assert len(theirs.get_input_embeddings().weight) == NEW
    for key, x in expected.state_dict().items():
        assert torch.equal(theirs.state_dict()[key], x), key
    ids = np.random.default_rng(1).integers(6, NEW, (2, 9))
    ids[:, :3] = [OLD, NEW - 1, 7]
    given = {"input_ids": torch.from_numpy(ids)}
    row = jnp.asarray(ids, jnp.int32)
    batch = {"input_ids": row, "segment_ids": row * 0 + 1, "token_type_ids": row * 0}
    if kind == "seq2seq":
        given["decoder_input_ids"] = given["input_ids"]
        batch |= {"decoder_input_ids": row, "decoder_segment_ids": row * 0 + 1}
    with torch.no_grad():
        logits = expected(**given).logits.numpy()
    ours = np.asarray(architecture.apply(params, batch)["logits"]).reshape(logits.shape)
    np.testing.assert_allclose(ours, logits, atol=2e-5)


@pytest.mark.parametrize(
    ("raw", "kind", "said"),
    [
        (
            {"model_type": "cpmant", "hidden_size": 32, "num_attention_heads": 4, "dim_head": 8,
             "num_hidden_layers": 1, "dim_ff": 48},
            "causal",
            r"cpmant\.input_embedding\.weight .* \[1084, 32\] for 60 tokens",
        ),
        (
            {"model_type": "marian", **_BOTH, "decoder_vocab_size": 50,
             "share_encoder_decoder_embeddings": False},
            "seq2seq",
            "decoder's embeddings of MarianMTModel keep 50 rows",
        ),
        (
            {"model_type": "deepseek_v4", "hidden_size": 32, "num_hidden_layers": 1,
             "mlp_layer_types": ["hash_moe"], "num_attention_heads": 4, "moe_intermediate_size": 16,
             "n_routed_experts": 4, "num_experts_per_tok": 2},
            "causal",
            r"tid2eid of DeepseekV4ForCausalLM has whole numbers for each token",
        ),
    ],
)  # fmt: skip
def test_what_has_no_row_for_each_token_is_refused_in_one_line(tmp_path, raw, kind, said):
    (tmp_path / "config.json").write_text(json.dumps({**raw, "vocab_size": OLD}))
    with pytest.raises(ValueError, match=said) as error:
        load_architecture(str(tmp_path), num_labels=0, head=kind, vocabulary=NEW)
    assert "\n" not in str(error.value) and "resize_vocabulary" in str(error.value)


@pytest.mark.slow
def test_a_run_grows_goes_on_after_a_kill_and_exports_frozen_rows_as_they_were(world, tmp_path):
    """Of a bridged BERT whose tokenizer was added to, with frozen embeddings."""
    model = tmp_path / "one_block"
    shutil.copytree(world / "one_block", model)
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    assert tokenizer.add_tokens(["movie"]) == 1
    tokenizer.save(str(model / "tokenizer.json"))
    text = (world / "train.csv").read_text().replace("film", "movie")
    (tmp_path / "train.csv").write_text(text)
    how = ("--config.model.resize_vocabulary=true", "--config.model.implementation=bridge",
           "--config.optim.freeze_below=1")  # fmt: skip
    assert train.main(worlds.arguments(tmp_path, tmp_path / "whole", *how)) == 0
    broken = worlds.arguments(tmp_path, tmp_path / "broken", *how)
    worlds.killed_at(6, broken)
    assert train.main(broken) == 0
    worlds.assert_same_weights(tmp_path / "broken", tmp_path / "whole")
    name = "bert.embeddings.word_embeddings.weight"
    before, table = (
        load_file(place / "model.safetensors")[name] for place in (model, tmp_path / "whole/best")
    )
    assert table[: len(before)].tobytes() == before.tobytes() and len(table) > len(before)
    flags = [f"--run={tmp_path / 'whole'}", f"--output={tmp_path / 'out'}", "--verify=8"]
    assert export.main(["export", *flags]) == 0
    found = json.loads((tmp_path / "out" / companions.CERTIFICATE).read_text())
    assert found["exported"]["largest difference"] == 0.0
    assert 0 < found["pytorch"]["largest difference"] < 1e-5
