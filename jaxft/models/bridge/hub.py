"""Modules of transformers: from a config.json to one of its classes on torch's meta device."""

import contextlib
import difflib
import functools
import inspect
import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import torch
import transformers

from jaxft.base.json_file import brief
from jaxft.base.quiet import quiet
from jaxft.models.bridge import structure
from jaxft.models.bridge.module import (
    Built,
    computed_buffers,
    make_buffers_of_unsaved,
    persistent_names,
    replace_rates,
)
from jaxft.models.bridge.naming import naming
from jaxft.models.bridge.pieces import Pieces
from jaxft.models.bridge.selection import LastMarked
from jaxft.models.families import FAMILIES
from jaxft.models.family import ImageLimits, TextLimits
from jaxft.models.heads import NoHeadError
from jaxft.models.rates import Rates

# kind of head -> (its classes by config, how one is made)
HEADS = {
    "sequence": (
        transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        transformers.AutoModelForSequenceClassification,
    ),
    "token": (
        transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
        transformers.AutoModelForTokenClassification,
    ),
    "question": (
        transformers.MODEL_FOR_QUESTION_ANSWERING_MAPPING,
        transformers.AutoModelForQuestionAnswering,
    ),
    "choice": (
        transformers.MODEL_FOR_MULTIPLE_CHOICE_MAPPING,
        transformers.AutoModelForMultipleChoice,
    ),
    "image": (
        transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        transformers.AutoModelForImageClassification,
    ),
    "causal": (transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.AutoModelForCausalLM),
    "masked": (transformers.MODEL_FOR_MASKED_LM_MAPPING, transformers.AutoModelForMaskedLM),
    "seq2seq": (
        transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        transformers.AutoModelForSeq2SeqLM,
    ),
}
# Those whose outputs are tokens of the vocabulary and no labels.
LANGUAGE = ("causal", "masked", "seq2seq")
# Those with as many outputs whatever they learn, and texts in pairs.
_OF_PAIRS = ("question", "choice")
# Keys of a config.json that say what a head was trained for, and not what the model is.
_OF_LABELS = ("id2label", "label2id", "num_labels", "_num_labels", "problem_type", "dtype",
              "torch_dtype", "quantization_config", "architectures")  # fmt: skip
# Names of the longest input in configs. Of a model that names none, data.max_length is asked for.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length",
              "max_source_positions")  # fmt: skip
_MOST_POSITIONS = 8192  # rows are no longer
_MOST_TOKENS = 2**31 - 1
# How often a config has something built; ten times what any published model has, so that a mistyped or
# hostile number is refused at once and not after hours of making modules.
_COUNTS = re.compile(
    r"(num_|n_)(\w*_)?(layers?|blocks|stages)|(en|de)coder_(layers|blocks)|depths?|num_depths"
)
_MOST = 1024


def build(
    where: str, raw: Mapping[str, Any], head: str | None, num_labels: int, rates: Rates
) -> Built:
    """The class of transformers for this config.json and kind of head.

    Args:
        where: the file, for messages.
        head: None: the only one of 'sequence' and 'image' that the model type has.

    Raises:
        ValueError: code of a checkpoint would run, transformers has no such model or head, or
            cannot make it of this config.
    """
    config_class = _config_class(where, raw)
    _check_counts(where, raw)
    kind, auto = _class_for(where, raw, head, config_class)
    labels = None if kind in LANGUAGE else num_labels
    module = _module(where, raw, auto, config_class, labels, rates)
    make_buffers_of_unsaved(module)
    fixed = frozenset(name for name, x in module.named_parameters() if not x.requires_grad)
    module.requires_grad_(False)
    config, base = module.config, module.base_model_prefix
    depths = structure.depths(module, base)
    labelled: list[str] = []
    if kind in _OF_PAIRS:
        top = max(depths.values())
        own = {name: x for name, x in module.named_parameters() if depths[name] == top}
        labelled = [name for name, x in own.items() if x.shape[:1] == (num_labels,)]
    elif labels is not None:
        other = _module(where, raw, auto, config_class, labels + 1, rates)
        shapes = {name: x.shape for name, x in other.named_parameters()}
        labelled = [name for name, x in module.named_parameters() if shapes[name] != x.shape]
    elif kind == "causal":
        _require_causal(where, config_class, config)
    takes = frozenset(inspect.signature(module.forward).parameters)
    if kind != "image" and "input_ids" not in takes:
        raise ValueError(f"{where}: {type(module).__name__} takes no input_ids, so no texts")
    if kind == "seq2seq" and "decoder_input_ids" not in takes:  # decoders that hear, as Qwen2-Audio
        raise ValueError(
            f"{where}: {type(module).__name__} takes no decoder_input_ids, so it reads no text apart from "
            "the one that it writes"
        )
    if kind == "image" and "pixel_values" not in takes:
        raise ValueError(f"{where}: {type(module).__name__} takes no pixel_values, so no images")
    pad = _settle_padding(config)
    pieces = Pieces(module)
    for piece, whole in pieces.origins.items():
        depths[piece] = max(depths[name] for name in whole)
    return Built(
        head=kind,
        library=f"transformers {transformers.__version__}",
        module=module,
        constants=_constants(module),
        forward=functools.partial(_logits, module, kind),
        takes=takes,
        initialise=functools.partial(_initialise, module),
        from_scratch=True,
        pad=pad,
        # As XLNet's, whose tokenizer pads so.
        left=kind in ("sequence", "choice") and getattr(config, "summary_type", "") == "last",
        exports=type(module).__name__,
        limits=_image_limits(module, config)
        if kind == "image"
        else _text_limits(module, config, takes, kind),
        naming=naming(module, base, labelled, pieces),
        depths=depths,
        fixed=fixed,
        join=pieces.join,
        split=pieces.split,
    )


def _config_class(where: str, raw: Mapping[str, Any]) -> Any:
    if "auto_map" in raw:
        raise ValueError(
            f"{where}: auto_map names code of the checkpoint, which is never run; give a model that "
            "transformers itself implements"
        )
    known = transformers.CONFIG_MAPPING
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in known:
        near = difflib.get_close_matches(str(model_type)[:60].lower(), list(known.keys()), n=1)
        raise ValueError(
            f"{where}: model_type {brief(model_type)} is not implemented; known are "
            f"{', '.join(FAMILIES)} and those of transformers {transformers.__version__}"
            + (f" (did you mean {near[0]!r}?)" if near else "")
        )
    return known[model_type]


def _check_counts(where: str, raw: Mapping[str, Any]) -> None:
    for key, value in raw.items():
        if isinstance(value, Mapping):
            _check_counts(where, value)
        elif _COUNTS.fullmatch(str(key)):
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, int) and number > _MOST:
                    raise ValueError(f"{where}: {key} {brief(value)} is above {_MOST}")


def _class_for(
    where: str, raw: Mapping[str, Any], head: str | None, config_class: Any
) -> tuple[str, Any]:
    has = [kind for kind, (classes, _) in HEADS.items() if config_class in classes]
    chosen = [kind for kind in has if kind in ("sequence", "image")] if head is None else [head]
    if not chosen or chosen[0] not in has:
        kind = chosen[0] if chosen else "sequence or image"
        raise NoHeadError(
            f"{where}: transformers has no class of model_type {raw['model_type']!r} with a head of "
            f"kind {kind!r} that is bridged",
            kind,
            has,
        )
    return chosen[0], HEADS[chosen[0]][1]


def _require_causal(where: str, config_class: Any, config: Any) -> None:
    """Raises ValueError for an encoder: its class for causal models lets tokens see those that follow."""
    if config_class in HEADS["masked"][0] and getattr(config, "is_decoder", None) is False:
        raise ValueError(
            f"{where}: {config.model_type!r} is an encoder, whose tokens see those after them; for a "
            'causal model of this type set "is_decoder": true in config.json'
        )


def _module(
    where: str, raw: Mapping[str, Any], auto: Any, config_class: Any, num_labels: int | None,
    rates: Rates,
) -> Any:  # fmt: skip
    kept = {key: _plain(value) for key, value in raw.items() if key not in _OF_LABELS}
    try:
        config = config_class.from_dict(kept)  # once: some configs are not what they write
        leaves_out = replace_rates(config, rates)
        # Which of a type's classes, where it has several.
        config.architectures = [x for x in raw.get("architectures") or () if isinstance(x, str)]
        if num_labels is not None:
            config.num_labels = num_labels
        with quiet(), torch.device("meta"):
            # Of the attentions in plain operations the eager one is the fastest once compiled.
            module = auto.from_config(config, attn_implementation="eager")
    except Exception as error:  # whatever a library makes of a config that it does not like
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{where}: transformers cannot make the model: {reason}") from error
    if rates.stochastic_depth and not leaves_out:
        raise ValueError(
            f"config.model.stochastic_depth={rates.stochastic_depth} is not for {config.model_type!r} as "
            "it is bridged: transformers' module of it leaves out no residual branches; leave it at none"
        )
    module.config.use_cache = False
    _untie(module, raw)
    return module


def _plain(value: Any) -> Any:
    """JSON with the numbers that it has no way to write, as transformers writes them, made numbers."""
    if isinstance(value, Mapping):
        if value.keys() == {"__float__"}:
            return float(value["__float__"])
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _untie(module: Any, raw: Mapping[str, Any]) -> None:
    """Gives the output its own embeddings where config.json says so.

    Some classes, as T5's, tie them all the same, and transformers unties them when it finds both in a
    file; of T5 version 1.1 it writes that the decoder's output is not scaled.
    """
    own = raw.get("tie_word_embeddings") is False or raw.get("scale_decoder_outputs") is False
    try:
        output = module.get_output_embeddings()
    except NotImplementedError:
        return
    if output is not None and own:
        if output.weight is module.get_input_embeddings().weight:
            output.weight = torch.nn.Parameter(torch.empty_like(output.weight))


def _constants(module: Any) -> dict[str, Any]:
    """Buffers that follow from the config, computed on the CPU by the module's own initialisation."""
    found = computed_buffers(module)
    for owner, name, _ in found:
        empty = torch.zeros_like(getattr(owner, name), device="cpu")
        owner.register_buffer(name, empty, persistent=False)
    _initialise(module)
    return {full: _as_numpy(getattr(owner, name)) for owner, name, full in found}


def _as_numpy(x: torch.Tensor) -> np.ndarray:
    """Also bfloat16, which torch does not hand to numpy."""
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


def _initialise(module: Any) -> None:
    with torch.no_grad():
        for part in module.modules():
            part.__dict__.pop("_is_hf_initialized", None)  # else it would be left as it is
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
        module.initialize_weights()


def _settle_padding(config: Any) -> int:
    """The id of padding. Where there is none, one that no token has, so that heads that look for the
    last token that is no padding find the last of all."""
    text = config.get_text_config()
    if getattr(text, "pad_token_id", None) is None:
        text.pad_token_id = config.pad_token_id = -1
    return text.pad_token_id


def _logits(module: Any, kind: str, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    with unchecked(), LastMarked():
        found = module(**inputs, return_dict=True)
        if kind == "question":
            return torch.stack((found.start_logits, found.end_logits), dim=-1)
        return found.logits


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Without transformers' checks of values, which a trace has not; its own switch for that."""
    name = "TRANSFORMERS_DISABLE_TORCH_CHECK"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _text_limits(module: Any, config: Any, takes: Collection[str], kind: str) -> TextLimits:
    text = config.get_text_config()
    given = (getattr(text, name, None) for name in _POSITIONS)
    longest = next((int(n) for n in given if isinstance(n, int) and n > 0), _MOST_POSITIONS)
    for name, part in module.named_modules():
        if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None:
            # As in RoBERTa: positions are counted from the id of padding on.
            longest = min(longest, len(part.weight) - part.padding_idx - 1)
    # By token types or, as DistilBERT, by the separators that tokenizers of masked models write; a class
    # that transformers has for pairs takes them in any case.
    types = getattr(text, "type_vocab_size", None)
    typed = "token_type_ids" in takes and isinstance(types, int) and types > 1
    separated = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING
    # One without a vocabulary, as CANINE, takes any character.
    vocabulary = int(getattr(text, "vocab_size", _MOST_TOKENS))
    pairs = typed or separated or kind in _OF_PAIRS
    return TextLimits(vocabulary, min(longest, _MOST_POSITIONS), pairs, alone=True)


def _image_limits(module: Any, config: Any) -> ImageLimits:
    size = getattr(config, "image_size", None)
    placed = any("position" in name for name in persistent_names(module))
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = int(getattr(config, "num_channels", 3))
    return ImageLimits(height, width, channels) if placed else ImageLimits(None, None, channels)
