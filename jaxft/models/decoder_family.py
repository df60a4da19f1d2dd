"""The record of a family whose backbone is the decoder of layers/decoder.py."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from jaxft.models import cuts, vocabulary
from jaxft.models.family import Family, Head, Outputs, TextLimits, depth_rules
from jaxft.models.heads import every_token, last_token
from jaxft.models.layers import decoder, modules, ops


class Score(nnx.Module):
    """Dropout and one linear map, `score`."""

    def __init__(
        self,
        width: int,
        num_labels: int,
        *,
        rate: float,
        std: float,
        use_bias: bool,
        rngs: nnx.Rngs,
    ):
        self.score = modules.Linear(width, num_labels, std=std, rngs=rngs, use_bias=use_bias)
        self.rate = rate

    def __call__(self, hidden: jax.Array, seed: ops.Seed) -> Outputs:
        """[R, K, D] -> logits [R, K, C]."""
        return {"logits": self.score(ops.dropout(hidden, self.rate, seed))}


def _sequence_score(config, num_labels: int, rngs: nnx.Rngs) -> Score:
    std = config.initializer_range
    return Score(config.hidden_size, num_labels, rate=0.0, std=std, use_bias=False, rngs=rngs)


def _token_score(config, num_labels: int, rngs: nnx.Rngs) -> Score:
    given, std = config.classifier_dropout, config.initializer_range
    rate = 0.1 if given is None else given
    return Score(config.hidden_size, num_labels, rate=rate, std=std, use_bias=True, rngs=rngs)


def _tensor_rules(config: Any) -> cuts.Rules:
    heads, layer = config.num_attention_heads, r"model/layers/\d+"
    return (
        *cuts.columns(f"{layer}/self_attn/q_proj", heads),
        *cuts.columns(f"{layer}/self_attn/[kv]_proj", config.num_key_value_heads),
        *cuts.rows(f"{layer}/self_attn/o_proj", heads),
        *cuts.columns(f"{layer}/mlp/(gate|up)_proj"),
        *cuts.rows(f"{layer}/mlp/down_proj"),
        *cuts.table("model/embed_tokens|lm_head"),
    )


# The language model's head, the head for questions, and a buffer that old versions saved.
OTHER_HEADS = (
    r"(lm_head|qa_outputs)\..*",
    r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
)


def decoder_family(
    model_type: str,
    classes: str,
    config: type[Any],
    backbone: Callable[[Any, str, nnx.Rngs], decoder.Decoder],
    *,
    tokens: bool = True,
    languages: str = "",
) -> Family[Any]:
    """The record of a family whose backbone is this decoder, as 'model'.

    Args:
        classes: HF's classes begin with it.
        tokens: HF has a class with a head for tokens.
        languages: HF's class of the language model begins with it; '': with `classes`.
    """

    def depths(config: Any) -> tuple[tuple[str, int], ...]:
        blocks = (rf"model/layers/{n}/.*" for n in range(config.num_hidden_layers))
        return depth_rules(
            r"model/embed_tokens/.*", blocks, r"(score|lm_head)/.*", last=r"model/norm/.*"
        )

    sequence = Head(
        f"{classes}ForSequenceClassification",
        _sequence_score,
        last_token,
        classifier="score",
        unused=(r"score\.bias",),
    )
    token = Head(f"{classes}ForTokenClassification", _token_score, every_token, classifier="score")
    table = "model/embed_tokens/embedding"
    causal = Head(
        f"{languages or classes}ForCausalLM",
        vocabulary.LMHead,
        every_token,
        classifier="",
        unused=(r"score\..*",),
        table=table,
        ties=vocabulary.tied(table, "lm_head.weight"),
    )
    return Family(
        model_type=model_type,
        config=config,
        dropouts=("attention_dropout", "classifier_dropout")[: 1 + tokens],
        limits=lambda config: TextLimits(
            config.vocab_size, config.max_position_embeddings, pairs=False, cut=True
        ),
        base="model",
        backbone=backbone,
        heads={"sequence": sequence, **({"token": token} if tokens else {}), "causal": causal},
        depth_rules=depths,
        tensor_rules=_tensor_rules,
        causal=True,
        other_heads=OTHER_HEADS,
    )
