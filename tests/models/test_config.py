"""config.json is read strictly: what would change the model and is not implemented is refused."""

import copy
import dataclasses

import pytest
import transformers

from jaxft import models
from jaxft.models.layers import ops

CONFIGS = {family: type(transformers.AutoConfig.for_model(family)) for family in models.FAMILIES}
# Read where a config.json has it, without a default in the class.
UNDECLARED = {"classifier_dropout"}
every_family = pytest.mark.parametrize("family", models.FAMILIES)


@every_family
def test_defaults_are_those_of_transformers(family):
    theirs, ours = CONFIGS[family](), models.FAMILIES[family].config.from_hf({})
    for field in dataclasses.fields(ours):
        expected = getattr(theirs, field.name, field.default)  # of some, HF's code has the default
        found = getattr(ours, field.name)
        if isinstance(found, tuple):  # of a side, (height, width)
            expected = (expected, expected) if isinstance(expected, int) else tuple(expected or ())
        assert found == expected


@every_family
def test_all_that_transformers_writes_is_known(family):
    raw = CONFIGS[family](num_labels=7, problem_type="regression").to_dict()
    assert models.FAMILIES[family].config.from_hf(raw) == models.FAMILIES[family].config.from_hf({})


OLD_BERT = {
    "_name_or_path": "somewhere/MiniLM",
    "architectures": ["BertForMaskedLM"],
    "directionality": "bidi",
    "finetuning_task": "mnli",
    "gradient_checkpointing": False,
    "id2label": {"0": "LABEL_0"},
    "layer_norm_eps": 1e-6,
    "model_type": "bert",
    "output_past": True,
    "pooler_type": "first_token_transform",
    "position_embedding_type": "absolute",
    "pruned_heads": {},
    "torch_dtype": "float16",
    "transformers_version": "4.8.2",
    "use_cache": True,
    "hidden_size": 384,
}


def test_an_old_config_is_read():
    config = models.FAMILIES["bert"].config.from_hf(OLD_BERT)
    assert config.hidden_size == 384 and config.layer_norm_eps == 1e-6


@pytest.mark.parametrize(
    "family, key, value",
    [
        ("bert", "position_embedding_type", "relative_key"),
        ("bert", "is_decoder", True),
        ("bert", "add_cross_attention", True),
        ("bert", "pruned_heads", {"0": [1]}),
        ("bert", "chunk_size_feed_forward", 64),
        ("bert", "quantization_config", {"bits": 8}),
        ("bert", "embedding_size", 128),
        ("gpt2", "scale_attn_weights", False),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("roberta", "position_embedding_type", "relative_key_query"),
        ("vit", "is_encoder_decoder", True),
        ("vit", "layer_scale_init", 0.1),
    ],
)
def test_what_would_change_the_model_is_refused(family, key, value):
    config_type = models.FAMILIES[family].config
    with pytest.raises(ValueError, match=key):
        config_type.from_hf({"model_type": family, key: value})
    assert config_type.from_hf({"model_type": family, key: None}) == config_type.from_hf({})


def test_everything_refused_is_in_one_message():
    raw = {"model_type": "bert", "is_decoder": True, "extra": 3, "pruned_heads": {"1": [0]}}
    with pytest.raises(ValueError) as error:
        models.FAMILIES["bert"].config.from_hf(raw)
    assert str(error.value) == (
        "config.json: not implemented for 'bert': extra=3 (unknown key), "
        "is_decoder=True (only False), pruned_heads={'1': [0]} (only {})"
    )


# What else than sizes stands in config.json of published decoders.
PUBLISHED = {
    "llama": {
        "head_dim": 64,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "eos_token_id": [128001, 128008],
        "rope_scaling": None,
        "rope_theta": 500000.0,
        "unsloth_fixed": True,
    },
    "mistral": {"sliding_window": None, "rope_theta": 1000000.0, "head_dim": 128},
    "qwen2": {"use_mrope": False, "sliding_window": 32768, "max_window_layers": 24},
    "qwen3": {"max_window_layers": 28, "rope_scaling": None, "sliding_window": None},
    "gemma2": {
        "cache_implementation": "hybrid",
        "final_logit_softcapping": 30.0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "gemma3_text": {
        "cache_implementation": "hybrid",
        "eos_token_id": [1, 106],
        "attn_logit_softcapping": None,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "sliding_window_pattern": 6,
    },
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_published_decoders_are_read_as_transformers_reads_them(family):
    raw = {"model_type": family, "torch_dtype": "bfloat16", **PUBLISHED[family]}
    ours = models.FAMILIES[family].config.from_hf(raw)
    theirs = CONFIGS[family](**copy.deepcopy(PUBLISHED[family]))
    for name in {"rope_parameters", "sliding_window", "head_dim", "num_key_value_heads"}:
        if hasattr(theirs, name):
            assert getattr(ours, name, None) == getattr(theirs, name), name


def test_gemma_3_is_read_in_the_words_it_had_before():
    raw = {
        "num_hidden_layers": 7,
        "sliding_window_pattern": 3,
        "rope_theta": 5e5,
        "rope_local_base_freq": 2e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    ours = models.FAMILIES["gemma3_text"].config.from_hf(raw)
    theirs = transformers.Gemma3TextConfig(**copy.deepcopy(raw))
    assert ours.rope_parameters == theirs.rope_parameters
    assert list(ours.layer_types) == theirs.layer_types


@pytest.mark.parametrize(
    "family, raw, message",
    [
        ("bert", {"hidden_act": "mish"}, "hidden_act 'mish' must be one of gelu, "),
        ("vit", {"num_hidden_layers": 0}, "num_hidden_layers 0 must be a whole number from 1 to"),
        ("bert", {"hidden_size": 100}, "100 is not a multiple of num_attention_heads 12"),
        ("gpt2", {"n_head": 7}, "n_embd 768 is not a multiple of n_head 7"),
        ("roberta", {"pad_token_id": 511}, "512 leaves no position after pad_token_id 511"),
        ("roberta", {"pad_token_id": None}, "pad_token_id None must be a whole number from 0 to"),
        (
            "llama",
            {"rope_scaling": {"type": "yarn", "factor": 2.0}},
            "rope_parameters .*'yarn'.* must",
        ),
        (
            "llama",
            {"rope_parameters": {"partial_rotary_factor": 0.5}},
            "rope_parameters .* must be",
        ),
        ("llama", {"num_key_value_heads": 7}, "32 is not a multiple of num_key_value_heads 7"),
        (
            "gemma3_text",
            {"rope_scaling": {"rope_type": "yarn"}},
            "rope_parameters .*yarn.* must be for",
        ),
        ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern=0"),
        ("gemma2", {"sliding_window": None}, "sliding_attention, but there is no sliding_window"),
        (
            "qwen2",
            {"layer_types": ["full_attention"]},
            "layer_types has 1 types for num_hidden_layers 32",
        ),
        (
            "qwen2",
            {"layer_types": ["sliding_attention"], "num_hidden_layers": 1},
            "layer_types has sliding_attention, but there is no sliding_window",
        ),
        ("llama", {"head_dim": 7}, "head_dim 7 must be even"),
        (
            "vit",
            {"image_size": 30},
            r"image_size \(30, 30\) is no multiple of patch_size \(16, 16\)",
        ),
    ],
)
def test_values_that_cannot_work_are_refused(family, raw, message):
    with pytest.raises(ValueError, match=message):
        models.FAMILIES[family].config.from_hf(raw)


@every_family
def test_every_field_has_a_rule(family):
    config_type = models.FAMILIES[family].config
    for field in dataclasses.fields(config_type):
        with pytest.raises(ValueError, match=f"{field.name} .* must be "):
            config_type.from_hf({field.name: {"no": "value"}})


def test_activations_are_those_of_transformers():
    import numpy as np
    import torch
    from transformers.activations import ACT2FN

    x = np.linspace(-6, 6, 401, dtype=np.float32)
    for name, function in ops.ACTIVATIONS.items():
        expected = ACT2FN[name](torch.tensor(x)).numpy()
        np.testing.assert_allclose(function(x), expected, atol=2e-6, err_msg=name)
