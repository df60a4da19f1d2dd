"""What is T5's alone: rows of two sides, relative positions, and when its output is its own."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.t5.modeling_t5 import T5Attention

from jaxft import models
from jaxft.models import hf, vocabulary
from jaxft.models.layers import relative
from tests.models.native_rows import ROWS, T5_SIZES
from tests.models.test_native import compiled, torch_model

SIDES = ("", "decoder_")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> tuple[Any, Any]:
    """(architecture, parameters) of v1.1."""
    path = tmp_path_factory.mktemp("t5")
    row = ROWS["t5 v1.1"]
    row.save(torch_model(row), path)
    return load(path)


def load(path: Path) -> tuple[Any, Any]:
    architecture = models.load_architecture(str(path), num_labels=0, head="seq2seq")
    return architecture, hf.read_params(str(path), architecture, key=jax.random.key(0))[0]


def examples() -> dict[str, np.ndarray]:
    """Three examples, a row each."""
    ours, _ = ROWS["t5 v1.1"].inputs(np.random.default_rng(0))
    return ours


def packed(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The third example behind the first on both sides of one row, the second alone."""
    batch = {}
    for side in SIDES:
        names = [f"{side}{name}" for name in ("input_ids", "positions", "segment_ids")]
        lengths = (rows[names[2]] > 0).sum(1)
        batch.update({name: np.zeros((2, 18), np.int32) for name in names})
        for row, slot, example, start in ((0, 1, 0, 0), (0, 2, 2, lengths[0]), (1, 1, 1, 0)):
            own = slice(start, start + lengths[example])
            for name in names[:2]:
                batch[name][row, own] = rows[name][example, : lengths[example]]
            batch[names[2]][row, own] = slot
    return batch


def test_packed_rows_give_the_logits_and_gradients_of_rows_of_their_own(model):
    architecture, params = model
    alone, together = examples(), packed(examples())

    @compiled
    def run(params, batch, targets):
        def lost(params):
            logits = vocabulary.logits(architecture.apply(params, batch))
            scores = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)
            return (scores[..., 0] * (batch["decoder_segment_ids"] > 0)).sum(), logits

        return jax.value_and_grad(lost, has_aux=True)(params)

    def shaped(batch):  # targets follow the tokens into their rows
        return np.where(batch["decoder_segment_ids"] > 0, batch["decoder_positions"] + 7, 0)

    (value, logits), gradient = run(params, alone, shaped(alone))
    (same, packed_logits), same_gradient = run(params, together, shaped(together))
    np.testing.assert_allclose(value, same, rtol=1e-5)
    lengths = (alone["decoder_segment_ids"] > 0).sum(1)
    for row, start, example in ((0, 0, 0), (0, lengths[0], 2), (1, 0, 1)):
        own = packed_logits[row, start : start + lengths[example]]
        np.testing.assert_allclose(own, logits[example, : lengths[example]], atol=1e-5)
    for path, leaf in models.by_path(gradient).items():
        largest = float(np.abs(leaf).max())
        other = models.by_path(same_gradient)[path]
        np.testing.assert_allclose(other, leaf, atol=1e-4 * largest, err_msg=path)


def test_the_pass_can_be_cut_at_every_depth(model):
    architecture, params = model
    batch = examples()
    whole = architecture.apply(params, batch)["features"]
    for depth in range(architecture.num_blocks + 1):
        carry = architecture.prefix(params, batch, depth)
        np.testing.assert_array_equal(architecture.suffix(params, carry, depth)["features"], whole)


def test_depths_count_the_encoder_first(model):
    depths = model[0].depths
    assert depths["shared/embedding"] == 0
    assert depths["encoder/block/0/layer/0/SelfAttention/relative_attention_bias/embedding"] == 1
    assert depths["encoder/final_layer_norm/scale"] == 2
    assert depths["decoder/block/0/layer/1/EncDecAttention/q/kernel"] == 3
    assert depths["decoder/final_layer_norm/scale"] == 4
    assert depths["lm_head/embedding"] == 5


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("count", "farthest"), [(32, 128), (10, 50), (6, 11), (64, 777)])
def test_buckets_are_those_of_transformers(both_ways, count, farthest):
    distances = np.arange(-3000, 3001)
    theirs = T5Attention._relative_position_bucket(
        torch.tensor(distances), both_ways, count, farthest
    )
    ours = relative.buckets(distances, both_ways=both_ways, count=count, farthest=farthest)
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_biases_lie_where_their_distances_are():
    values = relative.distances_in_a_row(7)
    found = relative.by_distance(jnp.asarray(values)[:, None])[0, 0]
    np.testing.assert_array_equal(found, np.arange(7) - np.arange(7)[:, None])


@pytest.mark.parametrize(
    ("own", "says", "scaled"), [(False, True, True), (False, False, False), (True, True, True),
                                (True, False, False)],
)  # fmt: skip
def test_output_is_tied_by_the_tensors_and_scaled_by_the_config(own, says, scaled, tmp_path):
    torch.manual_seed(0)
    theirs = transformers.T5ForConditionalGeneration(
        transformers.T5Config(**T5_SIZES, tie_word_embeddings=says)
    ).eval()
    if own:
        theirs.lm_head.weight = torch.nn.Parameter(torch.randn(50, 15))
    theirs.save_pretrained(tmp_path / "in")
    # transformers writes that it is tied, whatever it is; older versions what they were told.
    config = json.loads((tmp_path / "in" / "config.json").read_text())
    assert config["tie_word_embeddings"] is True
    for old in (False, True):
        if old:
            del config["scale_decoder_outputs"], config["is_gated_act"], config["dense_act_fn"]
            config["tie_word_embeddings"] = says
            (tmp_path / "in" / "config.json").write_text(json.dumps(config))
        architecture, params = load(tmp_path / "in")
        assert ("lm_head/embedding" in models.by_path(architecture.abstract)) == own
        out = tmp_path / f"out{old}"
        hf.write_checkpoint(
            str(out),
            architecture,
            params,
            id2label={},
            source=None,
            unchanged=(),
            problem_type=None,
        )
        again = transformers.T5ForConditionalGeneration.from_pretrained(out)
        assert again.config.scale_decoder_outputs is scaled
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor), name
    assert architecture.modules(params)[1].scale == (15**-0.5 if scaled else 1.0)


def test_mistakes_in_the_config_are_named(tmp_path):
    fields = {"feed_forward_proj": "gated-", "relative_attention_max_distance": 4}
    config = {"model_type": "t5", **T5_SIZES, **fields}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="feed_forward_proj 'gated-' must be an activation"):
        models.load_architecture(str(tmp_path), num_labels=0, head="seq2seq")
    config["feed_forward_proj"] = "gated-silu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="max_distance 4 must be above half"):
        models.load_architecture(str(tmp_path), num_labels=0, head="seq2seq")
