"""The tokens that T5 generates against those of transformers' own generate."""

import collections
from typing import Any

import jax
import numpy as np
import pytest
import torch

from jaxft import models
from jaxft.generation.encoder_decoder import generate
from jaxft.generation.search import Beams, Ending
from jaxft.models import hf
from tests.models.native_rows import t5
from tests.models.test_native import compiled

MOST = 10
LENGTHS = np.array([11, 4, 7, 3, 9, 5])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> tuple[Any, Any, Any, int]:
    """(PyTorch's, architecture, parameters, a token that its texts often have: their end)."""
    path = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    # Small initial values, or a tied output, give each text the same token again and again.
    theirs = t5(feed_forward_proj="gated-gelu", initializer_factor=3.0)().eval()
    with torch.no_grad():
        theirs.lm_head.weight.mul_(4)
    theirs.save_pretrained(path)
    theirs.generation_config.eos_token_id = None
    ids, mask = texts()
    given = theirs.generate(ids, attention_mask=mask, max_new_tokens=MOST, do_sample=False)
    seen = collections.Counter(token for row in given[:, 3:7].tolist() for token in set(row))
    assert len(set(given.flatten().tolist())) > 15
    end = seen.most_common(1)[0][0]
    theirs.generation_config.eos_token_id = end
    architecture = models.load_architecture(str(path), num_labels=0, head="seq2seq")
    params, _ = hf.read_params(str(path), architecture, key=jax.random.key(0))
    return theirs, architecture, params, end


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    mask = np.arange(LENGTHS.max()) < LENGTHS[:, None]
    ids = np.random.default_rng(0).integers(2, 50, mask.shape)
    return torch.tensor(np.where(mask, ids, 0)), torch.tensor(mask.astype(int))


def ours(architecture: Any, params: Any, end: int, beams: Beams | None, rows: slice) -> np.ndarray:
    ids, mask = (x.numpy()[rows] for x in texts())
    batch = {"input_ids": ids, "segment_ids": mask, "positions": np.arange(ids.shape[1]) * mask}
    ending = Ending(MOST, end, pad=0)
    run = compiled(lambda params, batch: generate(architecture, params, batch, 0, ending, beams))
    return np.asarray(run(params, batch))


def until(end: int, tokens: Any) -> list[int]:
    found = [int(token) for token in tokens]
    return found[: found.index(end) + 1] if end in found else found


@pytest.mark.parametrize(
    "beams",
    [
        None,
        Beams(3),
        Beams(2, length_penalty=0.5, early_stopping=True),
        pytest.param(Beams(4, length_penalty=2.0, early_stopping="never"), marks=pytest.mark.slow),
        pytest.param(Beams(3, length_penalty=-1.0), marks=pytest.mark.slow),
        pytest.param(Beams(5, length_penalty=0.0, early_stopping="never"), marks=pytest.mark.slow),
    ],
)
def test_the_tokens_are_those_of_transformers(model, beams):
    theirs, architecture, params, end = model
    ids, mask = texts()
    how = {} if beams is None else {
        "num_beams": beams.count, "length_penalty": beams.length_penalty,
        "early_stopping": beams.early_stopping,
    }  # fmt: skip
    expected = theirs.generate(
        ids, attention_mask=mask, max_new_tokens=MOST, do_sample=False, **how
    )[:, 1:]
    expected = [until(end, row) for row in expected]
    found = ours(architecture, params, end, beams, slice(None))
    assert [until(end, row) for row in found] == expected
    lengths = {len(row) for row in expected}
    assert len(lengths) > 1  # some end, and not all at once
    # What is after the end is padding, and no text depends on the others.
    for row, tokens in zip(found, expected, strict=True):
        assert not row[len(tokens) :].any()
    alone = ours(architecture, params, end, beams, slice(1, 3))
    np.testing.assert_array_equal(alone, found[1:3])
