"""What SigLIP has beyond the rows of all families: its other parts, and a config within config.json."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxft import models
from jaxft.models import hf
from tests.models.native_rows import LABELS, SIGLIP_SIZES, images

TEXT = {
    "vocab_size": 20,
    "hidden_size": 15,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 13,
}
CONFIG = models.FAMILIES["siglip"].config


def test_a_whole_siglip_becomes_a_classifier_of_images(tmp_path):
    torch.manual_seed(0)
    config = transformers.SiglipConfig(vision_config=SIGLIP_SIZES, text_config=TEXT)
    whole = transformers.SiglipModel(config).eval()
    whole.save_pretrained(tmp_path / "in")
    architecture = models.load_architecture(str(tmp_path / "in"), num_labels=LABELS)
    params, report = hf.read_params(str(tmp_path / "in"), architecture, key=jax.random.key(0))
    names = {name.removeprefix("vision_model.") for name in report.dropped}
    assert {name.split(".")[0] for name in names} == {
        "head", "text_model", "logit_scale", "logit_bias",
    }  # fmt: skip
    assert set(report.initialised) == {"classifier/kernel", "classifier/bias"}
    assert not report.renamed

    out = str(tmp_path / "out")
    hf.write_checkpoint(
        out, architecture, params, id2label=dict(enumerate("abc")),
        source=str(tmp_path / "in"), unchanged=tuple(models.by_path(params)),
    )  # fmt: skip
    found, loading = transformers.AutoModelForImageClassification.from_pretrained(
        out, output_loading_info=True
    )
    assert not any(loading.values())
    assert type(found) is transformers.SiglipForImageClassification
    assert found.config.id2label == {0: "a", 1: "b", 2: "c"}
    ours, theirs = images(13, 13)(np.random.default_rng(0))
    logits = architecture.apply(params, ours)["logits"]
    np.testing.assert_allclose(logits, found.eval()(**theirs).logits.detach(), atol=1e-5)
    pixels = theirs["pixel_values"]
    pooled = whole.vision_model(pixels).last_hidden_state.mean(1)
    torch.testing.assert_close(found.vision_model(pixels).last_hidden_state.mean(1), pooled)

    with open(tmp_path / "out" / "config.json", encoding="utf-8") as file:
        written = json.load(file)
    assert "hidden_size" not in written and written["text_config"]["vocab_size"] == 20
    assert written["vision_config"]["vision_use_head"] is False
    again = models.load_architecture(out, num_labels=LABELS)
    assert again.config == architecture.config


def test_dropout_is_that_of_the_attention(tmp_path):
    transformers.SiglipConfig(vision_config=SIGLIP_SIZES).save_pretrained(tmp_path)
    architecture = models.load_architecture(str(tmp_path), num_labels=LABELS, dropout=0.5)
    params = architecture.init(jax.random.key(0))
    ours, _ = images(13, 13)(np.random.default_rng(0))
    logits, same, other, none = (
        np.asarray(architecture.apply(params, ours, key)["logits"])
        for key in (*map(jax.random.key, (1, 1, 2)), None)
    )
    np.testing.assert_array_equal(logits, same)
    assert np.abs(logits - other).max() > 1e-3 and np.abs(logits - none).max() > 1e-3


def test_the_config_of_the_vision_tower_has_the_defaults_of_transformers():
    theirs = transformers.SiglipVisionConfig()
    found = dataclasses.asdict(CONFIG.from_hf({"vision_config": {}}))
    assert found.pop("initializer_factor") == transformers.SiglipConfig().initializer_factor
    assert found == {name: getattr(theirs, name) for name in found}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"hidden_size": 768}, "config.json: hidden_size 768 must be in vision_config"),
        ({"vision_config": 3}, "config.json: vision_config 3 must be an object"),
        ({"vision_config": {"image_size": [8, 8]}}, r"image_size \[8, 8\] must be a whole number"),
        ({"vision_config": {"layer_scale": 1}}, r"for 'siglip': layer_scale=1 \(unknown key\)"),
        ({"vision_config": {"num_attention_heads": 7}}, "768 is not a multiple of"),
        ({"vision_config": {"image_size": 15}}, "has 0 rows of patches of patch_size 16; 1 to"),
    ],
)
def test_what_cannot_be_is_refused(raw, message):
    with pytest.raises(ValueError, match=message):
        CONFIG.from_hf({"model_type": "siglip", **raw})
