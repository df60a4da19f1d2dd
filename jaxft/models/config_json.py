"""A Hugging Face config.json, read strictly: what is not implemented is refused, never ignored.

A key is a field of the family's Config, or cannot change the logits, or has exactly one value that
is implemented. Everything else is an error, and all of them stand in one message.
"""

import dataclasses
import json
import os
from collections.abc import Collection, Mapping
from typing import Any

from jaxft.models import ops

# Keys of PretrainedConfig, past and present, on which no encoder logits depend: provenance, labels,
# what to return and, in the last paragraph, the defaults of text generation.
_NO_EFFECT = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path _num_labels
    architectures attn_implementation bos_token_id cls_token_id decoder_start_token_id dtype
    eos_token_id eos_token_ids finetuning_task gradient_checkpointing id2label
    keys_to_ignore_at_inference label2id mask_token_id model_type name_or_path num_labels
    output_attentions output_hidden_states output_past pad_token_id prefix problem_type return_dict
    sep_token_id task_specific_params tf_legacy_loss tie_last_hidden_states tie_word_embeddings
    tokenizer_class torch_dtype torchscript transformers_version use_bfloat16 use_cache
    use_return_dict xla_device

    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id length_penalty max_length min_length no_repeat_ngram_size num_beam_groups
    num_beams num_return_sequences output_scores remove_invalid_values repetition_penalty
    return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
    """.split()
)

# Keys of PretrainedConfig that would change the model, with the one value that does not.
_ONLY: Mapping[str, Any] = {
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
}


def load(directory: str) -> dict[str, Any]:
    """The contents of `directory/config.json`; ValueError if missing or not a JSON object."""
    path = os.path.join(directory, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            raw = json.load(file)
    except FileNotFoundError:
        raise ValueError(f"{directory} is no checkpoint: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold a JSON object, found {type(raw).__name__}")
    return raw


def fields(
    config_type: type,
    raw: Mapping[str, Any],
    *,
    ignored: Collection[str] = (),
    only: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The values in `raw` for the fields of the dataclass `config_type`.

    Args:
        ignored: the family's further keys that cannot change the logits.
        only: its further keys of which one value is implemented.

    Raises:
        ValueError: one line with every key that asks for what is not implemented.
    """
    names = {field.name for field in dataclasses.fields(config_type)}
    allowed = {**_ONLY, **(only or {})}
    refused = []
    for key, value in sorted(raw.items()):
        # null switches nothing on, whatever the key.
        if key in names or key in _NO_EFFECT or key in ignored or value is None:
            continue
        if key not in allowed:
            refused.append(f"{key}={value!r} (unknown key)")
        elif value != allowed[key]:
            refused.append(f"{key}={value!r} (only {allowed[key]!r})")
    if refused:
        family = raw.get("model_type")
        raise ValueError(f"config.json: not implemented for {family!r}: {', '.join(refused)}")
    return {name: raw[name] for name in names if name in raw}


def check_encoder(config: Any) -> None:
    """ValueError if the sizes and the activation that BERT-like encoders have do not fit."""
    if config.num_hidden_layers < 1:
        raise ValueError(
            f"config.json: num_hidden_layers {config.num_hidden_layers}; at least one is needed"
        )
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"config.json: hidden_size {config.hidden_size} is not a multiple of "
            f"num_attention_heads {config.num_attention_heads}"
        )
    if config.hidden_act not in ops.ACTIVATIONS:
        raise ValueError(
            f"config.json: hidden_act {config.hidden_act!r} is not implemented; "
            f"known are {', '.join(ops.ACTIVATIONS)}"
        )
