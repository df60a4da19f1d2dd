"""One row a variant of a native family: a tiny PyTorch model of awkward sizes, and inputs for both sides.

A family has one or two rows here, and those of `slow=True` for what else its config can say. What is asked
of each is in test_native.py.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

LABELS = 3
Inputs = tuple[dict[str, np.ndarray], dict[str, torch.Tensor]]  # (ours, PyTorch's keywords)


@dataclasses.dataclass(frozen=True)
class Row:
    """A tiny model with random weights.

    Attributes:
        build: the PyTorch model, in the layout of transformers' classes by default.
        inputs: of three examples, each in a row of its own, from a generator.
        head: the kind of head: 'sequence', 'token', 'question', 'choice', 'image', 'causal', 'masked' or
            'seq2seq'.
        slow: among the slow tests.
        logits: `(model, its keywords) ->` its logits.
        save: writes the model as a checkpoint.
        again: the model read back from one.
    """

    build: Callable[[], torch.nn.Module]
    inputs: Callable[[np.random.Generator], Inputs]
    head: str
    slow: bool = False
    logits: Callable[[Any, dict], torch.Tensor] = lambda model, inputs: model(**inputs).logits
    save: Callable[[Any, Path], None] = lambda model, path: model.save_pretrained(path)
    again: Callable[[Any, Path], Any] = lambda model, path: type(model).from_pretrained(path)


def texts(
    *,
    pad: int = 0,
    types: int = 1,
    left: bool = False,
    inside: bool = False,
    vocabulary: int = 50,
):
    """Three texts of 9, 5 and 7 tokens; PyTorch's are padded on the left if asked.

    `inside`: the token of padding stands in the texts, too.
    """

    def make(rng: np.random.Generator) -> Inputs:
        lengths, width = [9, 5, 7], 9
        mask = np.arange(width) < np.array(lengths)[:, None]
        ids = np.where(mask, rng.integers(pad + 1, vocabulary, mask.shape), pad)
        ids[:, 2] = pad if inside else ids[:, 2]
        kinds = np.where(mask & (np.arange(width) > 3), types - 1, 0)
        ours = {
            "input_ids": ids,
            "segment_ids": mask.astype(int),
            "positions": np.where(mask, np.arange(width), 0),
            "token_type_ids": kinds,
            "starts": np.zeros((len(lengths), 1), int),
        }
        shift = [width - length if left else 0 for length in lengths]
        theirs = {"input_ids": ids, "attention_mask": mask.astype(int)}
        theirs |= {"token_type_ids": kinds} if types > 1 else {}
        rolled = {
            name: np.stack([np.roll(row, by) for row, by in zip(array, shift, strict=True)])
            for name, array in theirs.items()
        }
        return (
            {name: array.astype(np.int32) for name, array in ours.items()},
            {name: torch.tensor(array) for name, array in rolled.items()},
        )

    return make


def text_pairs(vocabulary: int = 50):
    """Three texts as `texts` has them, and for the decoder others of 4, 6 and 3 tokens."""

    def make(rng: np.random.Generator) -> Inputs:
        ours, theirs = texts(vocabulary=vocabulary)(rng)
        mask = np.arange(6) < np.array([4, 6, 3])[:, None]
        decoder = {
            "decoder_input_ids": np.where(mask, rng.integers(0, vocabulary, mask.shape), 0),
            "decoder_segment_ids": mask.astype(int),
            "decoder_positions": np.where(mask, np.arange(6), 0),
        }
        for name, array in decoder.items():
            ours[name] = array.astype(np.int32)
        theirs["decoder_input_ids"] = torch.tensor(decoder["decoder_input_ids"])
        theirs["decoder_attention_mask"] = torch.tensor(decoder["decoder_segment_ids"])
        return ours, theirs

    return make


def ended_texts(end: int, vocabulary: int = 50):
    """Three texts as `texts` has them, each with one token `end`, its last."""

    def make(rng: np.random.Generator) -> Inputs:
        ours, theirs = texts(pad=end, vocabulary=vocabulary)(rng)
        last = (ours["segment_ids"] > 0).sum(1) - 1
        ids = np.where(ours["segment_ids"] > 0, ours["input_ids"], 0).astype(np.int32)
        ids[np.arange(3), last] = end
        return {**ours, "input_ids": ids}, {**theirs, "input_ids": torch.tensor(ids).long()}

    return make


def images(height: int = 8, width: int = 12, channels: int = 2, name: str = "pixel_values"):
    """Three images; PyTorch's have their channels first."""

    def make(rng: np.random.Generator) -> Inputs:
        pixels = rng.normal(size=(3, height, width, channels)).astype(np.float32)
        return {"pixel_values": pixels}, {name: torch.tensor(pixels.transpose(0, 3, 1, 2))}

    return make


def of(model: type, config: type, **fields: Any) -> Callable[[], torch.nn.Module]:
    """A class of transformers with a config of these fields; attention as written in its formulas."""
    return lambda: model(config(**{"num_labels": LABELS, "attn_implementation": "eager", **fields}))


BERT_SIZES = {
    "vocab_size": 50,
    "max_position_embeddings": 16,
    "hidden_size": 33,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 29,
    "initializer_range": 0.2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}

MODERNBERT_SIZES = {
    "vocab_size": 50,
    "max_position_embeddings": 16,
    "hidden_size": 30,
    "num_attention_heads": 3,
    "intermediate_size": 21,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "cls_token_id": 1,
    "sep_token_id": 1,
}

DISTILBERT_SIZES = {
    "vocab_size": 50,
    "max_position_embeddings": 16,
    "dim": 33,
    "n_layers": 2,
    "n_heads": 3,
    "hidden_dim": 29,
    "initializer_range": 0.2,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "seq_classif_dropout": 0.0,
}

LLAMA_SIZES = {
    "vocab_size": 50,
    "max_position_embeddings": 16,
    "hidden_size": 33,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "head_dim": 10,
    "intermediate_size": 29,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
NO_HEAD_DIM = {name: value for name, value in LLAMA_SIZES.items() if name != "head_dim"}

CONVNEXT_SIZES = {
    "num_channels": 2,
    "num_stages": 2,
    "hidden_sizes": [5, 7],
    "depths": [1, 2],
    "initializer_range": 0.2,
    "layer_scale_init_value": 0.7,
}

VIT_SIZES = {
    "hidden_size": 15,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_channels": 2,
    "initializer_range": 0.2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}

SIGLIP_SIZES = {
    "hidden_size": 15,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 13,
    "num_channels": 2,
    "image_size": 13,  # a rest of 1 is cut off
    "patch_size": 4,
    "layer_norm_eps": 1e-3,
}

DEBERTA = BERT_SIZES | {"type_vocab_size": 0, "relative_attention": True, "pos_att_type": ["c2p"]}


def masked(classes: str, untied: bool = False, **fields: Any) -> Row:
    """Of a class with a head for masked tokens."""
    config = getattr(transformers, f"{classes}Config")
    fields |= {"tie_word_embeddings": False} if untied else {}
    pad = fields.get("pad_token_id", 0)
    types = 2 if fields.get("type_vocab_size", 0) == 2 else 1
    build = of(getattr(transformers, f"{classes}ForMaskedLM"), config, **fields)
    fast = classes == "Bert" and not untied
    return Row(build, texts(pad=pad, types=types), "masked", slow=not fast)


def causal(classes: str, *, slow: bool = True, **fields: Any) -> Row:
    """Of a class with a head for the next token."""
    family = "Gemma3Text" if classes == "Gemma3" else classes
    suffix = "LMHeadModel" if classes == "GPT2" else "ForCausalLM"
    build = of(
        getattr(transformers, classes + suffix), getattr(transformers, f"{family}Config"), **fields
    )
    return Row(build, texts(inside=classes == "Llama"), "causal", slow=slow)


def question(classes: str, *, slow: bool = True, **fields: Any) -> Row:
    """Of a class that finds an answer's first and last token."""

    def logits(model: Any, inputs: dict) -> torch.Tensor:
        outputs = model(**inputs)
        return torch.stack([outputs.start_logits, outputs.end_logits], -1)

    model, config = (
        getattr(transformers, classes + end) for end in ("ForQuestionAnswering", "Config")
    )
    types = 2 if fields.get("type_vocab_size", 0) == 2 else 1
    given = texts(pad=fields.get("pad_token_id", 0), types=types)
    return Row(
        of(model, config, num_labels=2, **fields), given, "question", slow=slow, logits=logits
    )


def choice(classes: str, *, slow: bool = True, **fields: Any) -> Row:
    """Of a class that scores choices: the three texts are those of one question."""

    def logits(model: Any, inputs: dict) -> torch.Tensor:
        return model(**{name: array[None] for name, array in inputs.items()}).logits

    model, config = (
        getattr(transformers, classes + end) for end in ("ForMultipleChoice", "Config")
    )
    types = 2 if fields.get("type_vocab_size", 0) == 2 else 1
    given = texts(pad=fields.get("pad_token_id", 0), types=types)
    return Row(of(model, config, **fields), given, "choice", slow=slow, logits=logits)


GPT2_SIZES = {
    "vocab_size": 50,
    "n_positions": 16,
    "n_embd": 33,
    "n_layer": 2,
    "n_head": 3,
    "n_inner": 29,
    "initializer_range": 0.2,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}

T5_SIZES = {
    "vocab_size": 50,
    "d_model": 15,
    "d_kv": 4,
    "d_ff": 29,
    "num_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 7,
    "dropout_rate": 0.0,
    "layer_norm_epsilon": 1e-3,
    "decoder_start_token_id": 0,
}


def t5(*, scale_decoder_outputs: bool = False, **fields: Any) -> Callable[[], torch.nn.Module]:
    """v1.0, whose output is scaled and tied; else v1.1, which has one of its own."""

    def build() -> torch.nn.Module:
        sizes = {**T5_SIZES, **fields, "tie_word_embeddings": scale_decoder_outputs}
        model = of(transformers.T5ForConditionalGeneration, transformers.T5Config, **sizes)()
        if not scale_decoder_outputs:
            own = torch.randn(sizes["vocab_size"], sizes["d_model"]) / 4
            model.lm_head.weight = torch.nn.Parameter(own)
        return model

    return build


ROWS = {
    "dinov2": Row(
        of(
            transformers.Dinov2ForImageClassification,
            transformers.Dinov2Config,
            **VIT_SIZES,
            mlp_ratio=2,
            image_size=(12, 12),
            patch_size=(4, 3),
            layerscale_value=0.3,
            layer_norm_eps=1e-3,
            hidden_act="relu",
            qkv_bias=False,
            use_mask_token=False,
            drop_path_rate=0.3,  # of no effect outside training
        ),
        images(12, 12),
        "image",
    ),
    "siglip": Row(
        of(
            transformers.SiglipForImageClassification,
            transformers.SiglipConfig,
            vision_config=SIGLIP_SIZES | {"vision_use_head": False},
        ),
        images(13, 13),
        "image",
    ),
    "deit": Row(
        of(
            transformers.DeiTForImageClassification,
            transformers.DeiTConfig,
            **VIT_SIZES,
            intermediate_size=13,
            image_size=(8, 12),
            patch_size=(4, 3),
            layer_norm_eps=1e-3,
            hidden_act="relu",
            qkv_bias=False,
        ),
        images(),
        "image",
    ),
    "convnext": Row(
        of(
            transformers.ConvNextForImageClassification,
            transformers.ConvNextConfig,
            **CONVNEXT_SIZES,
            patch_size=3,
            layer_norm_eps=1e-3,
            hidden_act="relu",
            drop_path_rate=0.3,  # of no effect outside training
        ),
        images(20, 15),
        "image",
    ),
    "convnext without layer scale": Row(
        of(
            transformers.ConvNextForImageClassification,
            transformers.ConvNextConfig,
            **(CONVNEXT_SIZES | {"layer_scale_init_value": 0.0, "hidden_sizes": [5, 5]}),
        ),
        images(16, 24),
        "image",
        slow=True,
    ),
    "bert": Row(
        of(
            transformers.BertForSequenceClassification,
            transformers.BertConfig,
            **BERT_SIZES,
            layer_norm_eps=1e-3,
            hidden_act="gelu_new",
            type_vocab_size=3,
        ),
        texts(types=3),
        "sequence",
    ),
    "bert, tokens": Row(
        of(
            transformers.BertForTokenClassification,
            transformers.BertConfig,
            **BERT_SIZES,
            hidden_act="relu",
        ),
        texts(types=2),
        "token",
        slow=True,
    ),
    "xlm-roberta": Row(
        of(
            transformers.XLMRobertaForSequenceClassification,
            transformers.XLMRobertaConfig,
            **(BERT_SIZES | {"max_position_embeddings": 14, "type_vocab_size": 1}),
            pad_token_id=3,
        ),
        texts(pad=3),
        "sequence",
    ),
    "camembert, tokens": Row(
        of(
            transformers.CamembertForTokenClassification,
            transformers.CamembertConfig,
            **(BERT_SIZES | {"type_vocab_size": 1}),
        ),
        texts(pad=1),
        "token",
        slow=True,
    ),
    "distilbert": Row(
        of(
            transformers.DistilBertForSequenceClassification,
            transformers.DistilBertConfig,
            **DISTILBERT_SIZES,
            activation="relu",
        ),
        texts(),
        "sequence",
    ),
    "distilbert, tokens": Row(
        of(
            transformers.DistilBertForTokenClassification,
            transformers.DistilBertConfig,
            **DISTILBERT_SIZES,
        ),
        texts(),
        "token",
        slow=True,
    ),
    "deberta-v3": Row(
        of(
            transformers.DebertaV2ForSequenceClassification,
            transformers.DebertaV2Config,
            **(BERT_SIZES | {"type_vocab_size": 0}),
            relative_attention=True,
            position_buckets=4,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type="p2c|c2p",
            position_biased_input=False,
            max_relative_positions=-1,
            layer_norm_eps=1e-7,
        ),
        texts(),
        "sequence",
    ),
    "deberta-v2, tokens": Row(
        of(
            transformers.DebertaV2ForTokenClassification,
            transformers.DebertaV2Config,
            **(BERT_SIZES | {"type_vocab_size": 2}),
            relative_attention=True,
            max_relative_positions=7,
            pos_att_type=["c2p", "p2c"],
        ),
        texts(types=2),
        "token",
        slow=True,
    ),
    "deberta-v2 without relative attention": Row(
        of(
            transformers.DebertaV2ForSequenceClassification,
            transformers.DebertaV2Config,
            **(BERT_SIZES | {"type_vocab_size": 0}),
            pooler_hidden_act="relu",
        ),
        texts(),
        "sequence",
        slow=True,
    ),
    "modernbert": Row(
        of(
            transformers.ModernBertForSequenceClassification,
            transformers.ModernBertConfig,
            **MODERNBERT_SIZES,
            classifier_pooling="mean",
            local_attention=5,
            num_hidden_layers=3,
            global_attn_every_n_layers=2,
            norm_eps=1e-3,
            attention_bias=True,
        ),
        texts(),
        "sequence",
    ),
    "modernbert, first token": Row(
        of(
            transformers.ModernBertForSequenceClassification,
            transformers.ModernBertConfig,
            **MODERNBERT_SIZES,
            local_attention=4,
            layer_types=["sliding_attention", "sliding_attention"],
            num_hidden_layers=2,
            norm_bias=True,
            mlp_bias=True,
            classifier_bias=True,
            hidden_activation="silu",
        ),
        texts(),
        "sequence",
        slow=True,
    ),
    "modernbert, tokens": Row(
        of(
            transformers.ModernBertForTokenClassification,
            transformers.ModernBertConfig,
            **MODERNBERT_SIZES,
            num_hidden_layers=2,
        ),
        texts(),
        "token",
        slow=True,
    ),
    "electra": Row(
        of(
            transformers.ElectraForSequenceClassification,
            transformers.ElectraConfig,
            **BERT_SIZES,
            embedding_size=15,
            layer_norm_eps=1e-3,
            hidden_act="relu",
        ),
        texts(types=2),
        "sequence",
    ),
    "electra, tokens": Row(
        of(
            transformers.ElectraForTokenClassification,
            transformers.ElectraConfig,
            **BERT_SIZES,
            embedding_size=33,
        ),
        texts(types=2),
        "token",
        slow=True,
    ),
    "llama": Row(
        of(
            transformers.LlamaForSequenceClassification,
            transformers.LlamaConfig,
            **LLAMA_SIZES,
            num_key_value_heads=1,
            rms_norm_eps=1e-3,
            attention_bias=True,
            mlp_bias=True,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 30.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 40,
            },
        ),
        texts(left=True),
        "sequence",
    ),
    "mistral": Row(
        of(
            transformers.MistralForSequenceClassification,
            transformers.MistralConfig,
            **LLAMA_SIZES,
            num_key_value_heads=3,
            sliding_window=3,
        ),
        texts(left=True),
        "sequence",
    ),
    "mistral, tokens": Row(
        of(
            transformers.MistralForTokenClassification,
            transformers.MistralConfig,
            **{**LLAMA_SIZES, "hidden_size": 34, "num_attention_heads": 4},
            num_key_value_heads=2,
            hidden_act="gelu_new",
            sliding_window=None,
        ),
        texts(),
        "token",
        slow=True,
    ),
    "qwen2": Row(
        of(
            transformers.Qwen2ForSequenceClassification,
            transformers.Qwen2Config,
            **{**NO_HEAD_DIM, "hidden_size": 36},
            num_key_value_heads=1,
            use_sliding_window=True,
            sliding_window=2,
            max_window_layers=1,
        ),
        texts(left=True),
        "sequence",
    ),
    "qwen2, tokens": Row(
        of(
            transformers.Qwen2ForTokenClassification,
            transformers.Qwen2Config,
            **{**NO_HEAD_DIM, "hidden_size": 36},
            num_key_value_heads=3,
            rms_norm_eps=1e-2,
            rope_parameters={"rope_type": "default", "rope_theta": 50.0},
        ),
        texts(),
        "token",
        slow=True,
    ),
    "qwen3": Row(
        of(
            transformers.Qwen3ForSequenceClassification,
            transformers.Qwen3Config,
            **LLAMA_SIZES,
            num_key_value_heads=1,
            rms_norm_eps=1e-2,
            use_sliding_window=True,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention"],
        ),
        texts(left=True, inside=True),
        "sequence",
    ),
    "qwen3, tokens": Row(
        of(
            transformers.Qwen3ForTokenClassification,
            transformers.Qwen3Config,
            **LLAMA_SIZES,
            num_key_value_heads=3,
            attention_bias=True,
            tie_word_embeddings=True,
        ),
        texts(),
        "token",
        slow=True,
    ),
    "gemma2": Row(
        of(
            transformers.Gemma2ForSequenceClassification,
            transformers.Gemma2Config,
            **LLAMA_SIZES,
            num_key_value_heads=1,
            rms_norm_eps=1e-3,
            query_pre_attn_scalar=7,
            attn_logit_softcapping=2.0,
            sliding_window=3,
        ),
        texts(left=True),
        "sequence",
    ),
    "gemma2, tokens": Row(
        of(
            transformers.Gemma2ForTokenClassification,
            transformers.Gemma2Config,
            **{**LLAMA_SIZES, "num_hidden_layers": 3},
            num_key_value_heads=3,
            hidden_activation="silu",
            attention_bias=True,
            attn_logit_softcapping=None,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
            sliding_window=2,
        ),
        texts(),
        "token",
        slow=True,
    ),
    "gemma3": Row(
        of(
            transformers.Gemma3TextForSequenceClassification,
            transformers.Gemma3TextConfig,
            **LLAMA_SIZES,
            num_key_value_heads=1,
            rms_norm_eps=1e-3,
            query_pre_attn_scalar=7,
            sliding_window=3,
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0},
            },
        ),
        texts(left=True),
        "sequence",
    ),
    "gemma3, biases": Row(
        of(
            transformers.Gemma3TextForSequenceClassification,
            transformers.Gemma3TextConfig,
            **{**LLAMA_SIZES, "num_hidden_layers": 3},
            num_key_value_heads=3,
            hidden_activation="relu",
            attention_bias=True,
            tie_word_embeddings=False,
            sliding_window_pattern=2,
            sliding_window=4,
        ),
        texts(),
        "sequence",
        slow=True,
    ),
    "llama, tokens": Row(
        of(
            transformers.LlamaForTokenClassification,
            transformers.LlamaConfig,
            **LLAMA_SIZES,
            hidden_act="gelu",
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0},
        ),
        texts(),
        "token",
        slow=True,
    ),
}
ROWS |= {
    "t5": Row(
        t5(scale_decoder_outputs=True, num_decoder_layers=3, feed_forward_proj="relu"),
        text_pairs(),
        "seq2seq",
    ),
    "t5 v1.1": Row(
        t5(feed_forward_proj="gated-gelu", relative_attention_num_buckets=6),
        text_pairs(),
        "seq2seq",
    ),
    "t5, sequence": Row(
        of(transformers.T5ForSequenceClassification, transformers.T5Config, **T5_SIZES),
        ended_texts(end=1),
        "sequence",
        slow=True,
    ),
    "gpt2, next token": causal("GPT2", **GPT2_SIZES, slow=False),
    "gpt2, next token, untied": causal("GPT2", **GPT2_SIZES, tie_word_embeddings=False),
    "llama, next token": causal("Llama", **LLAMA_SIZES, num_key_value_heads=1, slow=False),
    "llama, next token, tied": causal(
        "Llama", **LLAMA_SIZES, num_key_value_heads=3, tie_word_embeddings=True
    ),
    "mistral, next token": causal("Mistral", **LLAMA_SIZES, num_key_value_heads=3),
    "qwen2, next token": causal(
        "Qwen2", **(NO_HEAD_DIM | {"hidden_size": 36}), num_key_value_heads=1
    ),
    "qwen3, next token": causal(
        "Qwen3", **LLAMA_SIZES, num_key_value_heads=3, tie_word_embeddings=True
    ),
    "gemma2, next token": causal(
        "Gemma2", **LLAMA_SIZES, num_key_value_heads=1, final_logit_softcapping=1.5, slow=False
    ),
    "gemma3, next token": causal(
        "Gemma3", **LLAMA_SIZES, num_key_value_heads=1, tie_word_embeddings=False
    ),
    "gemma3, next token, capped": causal(
        "Gemma3", **LLAMA_SIZES, num_key_value_heads=3, final_logit_softcapping=2.5
    ),
    "bert, masked": masked("Bert", **BERT_SIZES, hidden_act="relu", type_vocab_size=2),
    "bert, masked, untied": masked("Bert", untied=True, **BERT_SIZES),
    "roberta, masked": masked("Roberta", **BERT_SIZES, hidden_act="relu", pad_token_id=1),
    "camembert, masked, untied": masked(
        "Camembert", untied=True, **BERT_SIZES, type_vocab_size=1, pad_token_id=1
    ),
    "distilbert, masked": masked("DistilBert", **DISTILBERT_SIZES, activation="relu"),
    "distilbert, masked, untied": masked("DistilBert", untied=True, **DISTILBERT_SIZES),
    "electra, masked": masked("Electra", **BERT_SIZES, embedding_size=15, hidden_act="relu"),
    "electra, masked, untied": masked("Electra", untied=True, **BERT_SIZES, embedding_size=33),
    "deberta-v2, masked": masked("DebertaV2", **DEBERTA, hidden_act="relu"),
    "deberta-v2, masked, untied": masked("DebertaV2", untied=True, **DEBERTA),
    "deberta-v2, masked, its authors'": masked("DebertaV2", **DEBERTA, legacy=False),
    "modernbert, masked": masked("ModernBert", **MODERNBERT_SIZES, num_hidden_layers=2),
    "modernbert, masked, untied": masked(
        "ModernBert",
        untied=True,
        **MODERNBERT_SIZES,
        num_hidden_layers=2,
        decoder_bias=False,
        classifier_bias=True,
    ),
}
ROWS |= {
    "bert, question": question("Bert", **BERT_SIZES, type_vocab_size=2, slow=False),
    "roberta, question": question("Roberta", **BERT_SIZES, pad_token_id=1),
    "distilbert, question": question("DistilBert", **DISTILBERT_SIZES, qa_dropout=0.0),
    "electra, question": question("Electra", **BERT_SIZES, embedding_size=15),
    "deberta-v2, question": question("DebertaV2", **DEBERTA),
    "modernbert, question": question("ModernBert", **MODERNBERT_SIZES, num_hidden_layers=2),
    "bert, choice": choice("Bert", **BERT_SIZES, type_vocab_size=2),
    "roberta, choice": choice("Roberta", **BERT_SIZES, pad_token_id=1, slow=False),
    "distilbert, choice": choice("DistilBert", **DISTILBERT_SIZES),
    "deberta-v2, choice": choice("DebertaV2", **DEBERTA),
    "modernbert, choice": choice(
        "ModernBert", **MODERNBERT_SIZES, num_hidden_layers=2, classifier_pooling="mean"
    ),
}
