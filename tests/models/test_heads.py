"""Heads of other kinds than a family's first: an output for every token, against PyTorch."""

import functools
import json
import types
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch
import transformers
from safetensors.torch import save_file

from jaxft import models
from jaxft.models import heads, hf
from jaxft.models.checkpoint import names
from tests.models.native_rows import ROWS
from tests.models.test_parity import (
    FAMILY_ROWS,
    LABELS,
    assert_gradients_equal,
    batches,
    checkpoint,
    compiled,
    in_our_layout,
    load,
    packed,
    torch_model,
)

token_family = pytest.mark.parametrize(
    "family", [name for name, row in FAMILY_ROWS.items() if row.token is not None]
)
ORDER = [[2, 0], [1]]  # the examples of each packed row


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.mktemp("heads")


@functools.cache
def token_checkpoint(family: str, tmp: Any) -> tuple[Any, Any, Any]:
    """(PyTorch model, our architecture, our parameters) of one tiny checkpoint, saved once."""
    model = torch_model(family, "token")
    model.save_pretrained(tmp / family)
    architecture, params, report = load(tmp / family, head="token")
    assert report == names.ReadReport()
    return model, architecture, params


def lengths(rows: dict) -> np.ndarray:
    return (rows["segment_ids"] > 0).sum(1)


def by_example(logits: Any, rows: dict) -> list[Any]:
    """Logits [R, L, C] of packed rows -> [length, C] of each example, in the examples' order."""
    found: dict[int, Any] = {}
    for row, examples in enumerate(ORDER):
        start = 0
        for example in examples:
            stop = start + int(lengths(rows)[example])
            found[example] = logits[row, start:stop]
            start = stop
    return [found[example] for example in sorted(found)]


@token_family
def test_logits_of_every_token_equal_pytorch_padded_and_packed(family, tmp):
    model, architecture, params = token_checkpoint(family, tmp)
    rows, theirs = batches(family)
    expected = model(**theirs).logits.detach().numpy()
    run = compiled(lambda batch: architecture.apply(params, batch)["logits"])
    padded = np.asarray(run(rows))
    assert padded.shape == expected.shape and padded.dtype == np.float32
    together = by_example(np.asarray(run(packed(rows, ORDER, width=18))), rows)
    for example, length in enumerate(lengths(rows)):
        assert np.ptp(expected[example, :length]) > 0.1
        for found in (padded[example, :length], together[example]):
            np.testing.assert_allclose(found, expected[example, :length], atol=1e-5)


@token_family
@pytest.mark.parametrize("pack", [False, True])
def test_gradients_of_every_token_equal_pytorch(family, pack, tmp):
    model, architecture, params = token_checkpoint(family, tmp)
    rows, theirs = batches(family)
    labels = np.random.default_rng(1).integers(0, LABELS, rows["input_ids"].shape)
    labels = np.where(rows["segment_ids"] > 0, labels, -100)  # which PyTorch's loss leaves out
    model.zero_grad()
    model(**theirs, labels=torch.tensor(labels)).loss.backward()
    expected = in_our_layout(architecture, {n: p.grad for n, p in model.named_parameters()})
    batch = packed(rows, ORDER, width=18) if pack else rows
    targets = np.concatenate([labels[e, :length] for e, length in enumerate(lengths(rows))])

    def loss(params: Any) -> Any:
        logits = architecture.apply(params, batch)["logits"]
        examples = by_example(logits, rows) if pack else [
            logits[e, :length] for e, length in enumerate(lengths(rows))
        ]  # fmt: skip
        of_tokens = optax.softmax_cross_entropy_with_integer_labels(
            jax.numpy.concatenate(examples), targets
        )
        return of_tokens.mean()

    gradients = compiled(jax.grad(loss))(params)
    assert_gradients_equal(gradients, expected)


@token_family
def test_an_export_is_what_transformers_saves_key_for_key(family, tmp, tmp_path):
    model, architecture, params = token_checkpoint(family, tmp)
    params = {**params, "classifier": jax.tree.map(lambda x: x + 0.1, params["classifier"])}
    hf.write_checkpoint(
        str(tmp_path / "out"), architecture, params, id2label=dict(enumerate(("O", "B-X", "I-X"))),
        source=None, unchanged=(), problem_type=None,
    )  # fmt: skip
    again, said = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(said.values())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__] and "problem_type" not in config
    rows, theirs = batches(family)
    expected = np.asarray(compiled(architecture.apply)(params, rows)["logits"])
    real = rows["segment_ids"] > 0
    found = again.eval()(**theirs).logits.detach().numpy()
    np.testing.assert_allclose(found[real], expected[real], atol=1e-5)


@token_family
def test_a_head_of_another_kind_is_never_taken_for_its_own(family, tmp, tmp_path):
    """Their classifiers can have one name and shape; `architectures` tells them apart."""
    token_checkpoint(family, tmp)
    checkpoint(family, tmp_path)
    for saved, head in ((tmp_path, "token"), (tmp, None)):
        architecture, _, report = load(saved / family, head=head)
        top = architecture.num_blocks + 1
        assert set(report.initialised) == {p for p, d in architecture.depths.items() if d == top}
        assert any(name.startswith("classifier.") for name in report.dropped)


@pytest.mark.parametrize("tied", [True, False])
def test_a_decoders_language_model_gives_its_backbone(tied, tmp_path):
    config = ROWS["llama"].build().config
    config.tie_word_embeddings = tied
    saved = transformers.LlamaForCausalLM(config)
    saved.save_pretrained(tmp_path)
    architecture, params, report = load(tmp_path)
    assert report.initialised == ("score/kernel",)
    assert report.dropped == (() if tied else ("lm_head.weight",))
    body = {name: x for name, x in saved.state_dict().items() if name != "lm_head.weight"}
    for path, leaf in in_our_layout(architecture, body).items():
        np.testing.assert_array_equal(models.by_path(params)[path], leaf)


@pytest.mark.parametrize("saved, head", [("llama", "token"), ("llama, tokens", "sequence")])
def test_a_head_of_another_kind_may_have_a_bias_more_or_less(saved, head, tmp_path):
    ROWS[saved].build().save_pretrained(tmp_path)
    architecture, _, report = load(tmp_path, head=head)
    own = {"score/kernel", *(["score/bias"] if head == "token" else [])}
    assert set(report.initialised) == own
    theirs = {"score.weight", *(["score.bias"] if head == "sequence" else [])}
    assert set(report.dropped) == theirs


@pytest.mark.parametrize("pad, expected", [(None, [[3, 5], [4, 0]]), (0, [[2, 4], [0, 0]])])
def test_the_last_token_of_each_example_is_none_of_padding(pad, expected):
    batch = {
        "input_ids": np.array([[7, 0, 7, 0, 7, 0, 0], [0, 0, 0, 0, 0, 9, 9]], np.int32),
        "segment_ids": np.array([[1, 1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 0, 0]], np.int32),
        "starts": np.array([[0, 4], [0, 0]], np.int32),  # the last slot is empty
    }
    found = heads.last_token(types.SimpleNamespace(pad_token_id=pad), batch)
    np.testing.assert_array_equal(found, np.array(expected, np.int32), strict=True)


def test_a_language_model_of_gpt2_gives_its_backbone(tmp_path):
    """As the first files on the hub have it: without prefix, with the masks of attention."""
    found = torch_model("gpt2", "base").state_dict()
    FAMILY_ROWS["gpt2"].config.save_pretrained(tmp_path)
    masks = {
        f"h.{block}.attn.{name}": torch.ones(1, 1, 16, 16)
        for block in range(2)
        for name in ("bias", "masked_bias")
    }
    others = {**masks, "lm_head.weight": torch.zeros(50, 32)}
    save_file({**found, **others}, tmp_path / "model.safetensors")
    architecture, params, report = load(tmp_path)
    assert set(report.dropped) == set(others) and report.initialised == ("score/kernel",)
    body = {f"transformer.{name}": tensor for name, tensor in found.items()}
    for path, leaf in in_our_layout(architecture, body).items():
        np.testing.assert_array_equal(models.by_path(params)[path], leaf)


def test_a_head_that_a_family_lacks_is_refused_in_one_line(tmp_path):
    checkpoint("vit", tmp_path)
    with pytest.raises(ValueError, match="'token' is not implemented for .*'vit'; it has image$"):
        load(tmp_path / "vit", head="token")
    checkpoint("bert", tmp_path)
    with pytest.raises(
        ValueError,
        match=r"has sequence, token, question, choice, embedding, sentence, masked "
        r"\(did you mean 'token'\?\)$",
    ):
        load(tmp_path / "bert", head="tokens")
