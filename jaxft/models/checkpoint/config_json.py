"""A Hugging Face config.json, read strictly: what is not implemented is refused, never ignored.

A key is a field of the family's Config, or cannot change the logits, or has exactly one value that
is implemented. Fields have a type and bounds. Everything else is an error, and all of them stand in
one message.
"""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from jaxft.base.json_file import brief, read_object
from jaxft.models.checkpoint import timm_config
from jaxft.models.checkpoint.checkpoint_files import listed
from jaxft.models.layers import ops

# Keys of PretrainedConfig, past and present, on which no encoder logits depend: provenance, labels,
# what to return and, in the last paragraph, the defaults of text generation.
_NO_EFFECT = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path _num_labels
    architectures attn_implementation bos_token_id cls_token_id decoder_start_token_id dtype
    eos_token_id eos_token_ids finetuning_task fitted_on_evaluation gradient_checkpointing id2label
    keys_to_ignore_at_inference label2id mask_token_id model_type name_or_path num_labels
    output_attentions output_hidden_states output_past pad_token_id prefix problem_type return_dict
    sentence_classifier sep_token_id task_specific_params tf_legacy_loss tie_last_hidden_states
    tie_word_embeddings tokenizer_class torch_dtype torchscript transformers_version use_bfloat16 use_cache
    unsloth_fixed unsloth_version use_return_dict xla_device

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


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a field may be.

    Attributes:
        fits: whether it may be that.
        wanted: completes "must be …".
        elsewhere: whether what does not fit is what transformers implements.
    """

    fits: Callable[[Any], bool]
    wanted: str
    elsewhere: Callable[[Any], bool] = lambda value: False


class NotNativeError(ValueError):
    """All that is wrong with a config.json is that it asks for what other implementations may have."""


def whole(most: int, least: int = 1) -> Rule:
    """Not a bool, though Python counts with those, and not 12.0."""
    wanted = f"a whole number from {least} to {most:,}"
    return Rule(lambda x: _is_int(x) and least <= x <= most, wanted)


def optional(rule: Rule) -> Rule:
    """The same, or null."""
    return Rule(lambda x: x is None or rule.fits(x), f"null or {rule.wanted}")


def number(least: float, below: float, wanted: str) -> Rule:
    """NaN is in no range."""
    return Rule(lambda x: _is_number(x) and least <= x < below, wanted)


def _is_int(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)


def _pair(most: int) -> Rule:
    def fits(x: Any) -> bool:
        sides = list(x) if isinstance(x, list | tuple) else [x, x]
        return len(sides) == 2 and all(_is_int(side) and 1 <= side <= most for side in sides)

    return Rule(fits, f"a whole number from 1 to {most:,}, or two (height, width)")


def each(rule: Rule) -> Rule:
    """A list of 1 to 64 of them."""

    def fits(x: Any) -> bool:
        return isinstance(x, list | tuple) and 0 < len(x) <= 64 and all(map(rule.fits, x))

    return Rule(fits, f"a list, one a stage, each {rule.wanted}")


FLAG = Rule(lambda x: isinstance(x, bool), "true or false")
RATE = number(0, 1, "a number from 0 to less than 1")
# The bounds are some ten times what any published encoder has. They are there so that a mistyped
# or hostile config is refused at once, not after minutes of making shapes or a full memory.
SIZE = 2**17
ACTIVATION = Rule(
    lambda x: isinstance(x, str) and x in ops.ACTIVATIONS, f"one of {', '.join(ops.ACTIVATIONS)}"
)
_MOST_PATCHES = 2**20  # ten times those of the largest images; each is a row of a parameter
# By the names that most families have for these fields.
RULES: Mapping[str, Rule] = {
    "vocab_size": whole(10**7),
    "hidden_size": whole(SIZE),
    "num_hidden_layers": whole(512),
    "num_attention_heads": whole(SIZE),
    "intermediate_size": whole(4 * SIZE),
    "hidden_act": ACTIVATION,
    "hidden_dropout_prob": RATE,
    "attention_probs_dropout_prob": RATE,
    "classifier_dropout": optional(RATE),
    "max_position_embeddings": whole(10**7),
    "type_vocab_size": whole(10**6),
    "initializer_range": number(0, 1000, "a number from 0 to less than 1,000"),
    "layer_norm_eps": number(0, 1, "a number from 0 to less than 1"),
    "image_size": _pair(2**16),
    "patch_size": _pair(2**16),
    "num_channels": whole(10**4),
    "qkv_bias": FLAG,
    "tie_word_embeddings": FLAG,
}


def load(directory: str) -> dict[str, Any]:
    """The contents of `directory/config.json`; in timm's form with `id2label` for its classes.

    Raises:
        ValueError: missing, no JSON object, or labels that do not name the classes.
    """
    path = os.path.join(directory, "config.json")
    try:
        raw = read_object(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    if raw is None:
        raise ValueError(f"{directory} is no checkpoint: it has no config.json")
    if timm_config.is_timm(raw):
        try:
            raw = timm_config.with_labels(raw)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if wrong := _odd_labels(raw.get("id2label")):
        raise ValueError(f"{path}: id2label {wrong}")
    return raw


def class_names(directory: str) -> list[str]:
    """Names of the classes that a checkpoint's head was trained for; [] where it does not say.

    Raises:
        ValueError: as `load`.
    """
    names = load(directory).get("id2label") or {}
    ordered = [str(names[i]) for i in sorted(names, key=int)]
    generic = all(re.fullmatch(r"LABEL_\d+", name) for name in ordered)
    return [] if generic else ordered


def fields(
    config_type: type,
    raw: Mapping[str, Any],
    *,
    ignored: Collection[str] = (),
    only: Mapping[str, Any] | None = None,
    rules: Mapping[str, Rule] | None = None,
    check: Callable[[Any], Collection[str]] = lambda config: (),
    elsewhere: Collection[str] = (),
) -> Any:
    """A `config_type`, which is a dataclass, with the values that `raw` has for its fields.

    Args:
        ignored: the family's further keys that cannot change the logits.
        only: its further keys of which one value is implemented.
        rules: of its fields that RULES lacks.
        check: what is wrong with fields that are right each for itself.
        elsewhere: keys of `only` of which transformers implements more.

    Raises:
        ValueError: one line with every key that asks for what is not implemented, and every field
            that is not of its type, out of bounds or does not fit the others; NotNativeError where
            all of them ask for what is known and not implemented.
    """
    names = {field.name for field in dataclasses.fields(config_type)}
    known = names | _NO_EFFECT | set(ignored)
    refused = _refused(raw, known, {**_ONLY, **(only or {})})
    given = {name: raw[name] for name in sorted(names) if name in raw}
    ruled = {**RULES, **(rules or {})}
    odd = {name: value for name, value in given.items() if not ruled[name].fits(value)}
    wrong = [f"{name} {brief(value)} must be {ruled[name].wanted}" for name, value in odd.items()]
    bridged = refused.keys() <= set(elsewhere) and all(
        ruled[name].elsewhere(value) for name, value in odd.items()
    )
    if not wrong:
        config = config_type(**given)
        wrong += check(config)
        bridged = bridged and not wrong
    problems = []
    if refused:
        family = brief(raw.get("model_type"))
        problems.append(f"not implemented for {family}: {listed(list(refused.values()))}")
    problems += wrong
    if problems:
        error = NotNativeError if bridged else ValueError
        raise error(f"config.json: {'; '.join(problems)}")
    return config


def heads_fit(config: Any) -> list[str]:
    """What is wrong with the attention heads of BERT-like encoders."""
    if config.hidden_size % config.num_attention_heads:
        return [
            f"hidden_size {config.hidden_size} is not a multiple of "
            f"num_attention_heads {config.num_attention_heads}"
        ]
    return []


def patches_fit(config: Any) -> list[str]:
    """What is wrong with the attention heads and the sizes of images and patches of a vision model."""
    wrong = heads_fit(config)
    (height, breadth), (p, q) = config.image, config.patch
    if height % p or breadth % q:
        wrong.append(f"image_size {config.image} is no multiple of patch_size {config.patch}")
    elif height // p * (breadth // q) > _MOST_PATCHES:
        wrong.append(
            f"image_size {config.image} has {height // p * (breadth // q):,} patches; "
            f"at most {_MOST_PATCHES:,} can be"
        )
    return wrong


def _refused(
    raw: Mapping[str, Any], known: Collection[str], allowed: Mapping[str, Any]
) -> dict[str, str]:
    """What is refused, by key."""
    found = {}
    for key, value in sorted(raw.items()):
        # null switches nothing on, whatever the key.
        if key in known or value is None:
            continue
        name = key if key.isidentifier() and len(key) <= 60 else brief(key)
        if key not in allowed:
            found[key] = f"{name}={brief(value)} (unknown key)"
        elif value != allowed[key]:
            found[key] = f"{name}={brief(value)} (only {allowed[key]!r})"
    return found


def _odd_labels(id2label: Any) -> str:
    """What is wrong with the names of the classes; '' if nothing is, or none are given."""
    if id2label is None:
        return ""
    if not isinstance(id2label, dict):
        return f"must map class numbers to names, found {brief(id2label)}"
    # The names become those of the classifier's rows, in order: a gap would shift them.
    if set(id2label) != {str(index) for index in range(len(id2label))}:
        return f"must number the classes from 0 on without a gap, found {brief(list(id2label))}"
    odd = [name for name in id2label.values() if not isinstance(name, str | int | float)]
    if odd:
        return f"must map class numbers to names, found {brief(odd[0])}"
    names = [str(name) for name in id2label.values()]
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        return f"names two classes {brief(twice)}"
    return ""


def texts(value: Any) -> list[str]:
    """Those of a list; [] of anything else."""
    return [x for x in value if isinstance(x, str)] if isinstance(value, list) else []
