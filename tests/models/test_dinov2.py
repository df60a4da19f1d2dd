"""What DINOv2 has beyond the rows of all families: its fused SwiGLU, the mask token, sizes of images."""

import functools

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxft import models
from jaxft.models import hf
from tests.models.native_rows import LABELS, VIT_SIZES, images

compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def config(**fields):
    sizes = {"image_size": 8, "patch_size": 4, "mlp_ratio": 2, "num_labels": LABELS}
    return transformers.Dinov2Config(**VIT_SIZES, **sizes, attn_implementation="eager", **fields)


def test_swiglu_is_pytorchs_and_stays_one_tensor(tmp_path):
    torch.manual_seed(0)
    model = transformers.Dinov2ForImageClassification(config(use_swiglu_ffn=True)).eval()
    model.save_pretrained(tmp_path / "in")
    architecture = models.load_architecture(str(tmp_path / "in"), num_labels=LABELS)
    params, report = hf.read_params(str(tmp_path / "in"), architecture, key=jax.random.key(0))
    # As of ViT, what only masked image modelling reads is left out.
    assert report.dropped == ("dinov2.embeddings.mask_token",) and not report.initialised
    ours, theirs = images(8, 8)(np.random.default_rng(0))
    expected = model(**theirs).logits
    expected.square().sum().backward()

    def cost(params):
        logits = architecture.apply(params, ours)["logits"]
        return (logits**2).sum(), logits

    gradient, logits = compiled(jax.grad(cost, has_aux=True))(params)
    np.testing.assert_allclose(logits, expected.detach(), atol=1e-5)
    found = models.by_path(gradient)["dinov2/encoder/layer/1/mlp/weights_in/kernel"]
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    [gate] = [grads[name] for name in grads if name.endswith("layer.1.mlp.gate_proj.weight")]
    [up] = [grads[name] for name in grads if name.endswith("layer.1.mlp.up_proj.weight")]
    whole = torch.cat([gate, up]).T.numpy()
    np.testing.assert_allclose(found, whole, atol=1e-4 * np.abs(whole).max())

    id2label = dict(enumerate("abc"))
    out = str(tmp_path / "out")
    hf.write_checkpoint(out, architecture, params, id2label=id2label, source=None, unchanged=())
    again = transformers.Dinov2ForImageClassification.from_pretrained(out).eval()
    torch.testing.assert_close(again(**theirs).logits, expected, atol=1e-6, rtol=0)


def test_positions_are_not_interpolated(tmp_path):
    config().save_pretrained(tmp_path)
    architecture = models.load_architecture(str(tmp_path), num_labels=LABELS)
    pixels = {"pixel_values": np.zeros((1, 12, 12, 2), np.float32)}
    with pytest.raises(ValueError, match=r"\(12, 12, 2\), but the checkpoint takes \(8, 8, 2\)"):
        jax.eval_shape(architecture.apply, architecture.whole, pixels)
    with pytest.raises(ValueError, match=r"image_size \(8, 12\) is not square"):
        models.FAMILIES["dinov2"].config.from_hf({"image_size": [8, 12], "patch_size": 4})
