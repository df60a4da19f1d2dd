"""LoRA+: the matrix B of a low-rank adapter learns faster than A.

B starts at zero and A at random, and with one rate for both a wide layer's A learns too fast or
its B too slowly. Hayou et al., "LoRA+: efficient low rank adaptation of large models", 2024
(https://arxiv.org/abs/2402.12354).
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxft.optim.checks import Scalar, known
from jaxft.optim.paths import Tree, match_rules

# nnx.LoRA has the leaf lora_b; PEFT has lora_B, or lora_B/<adapter>/… below it.
B_MATRICES = (r"(.*/)?lora_[bB](/.*)?",)


def lora_plus_scales(params: Tree, ratio: Scalar, *, b: Sequence[str] = B_MATRICES) -> Tree:
    """Learning-rate multipliers: `ratio` for B, 1 for everything else.

    >>> lora_plus_scales({'query': {'lora_a': 0, 'lora_b': 0}}, 16.0)
    {'query': {'lora_a': 1.0, 'lora_b': 16.0}}

    Use: `fine_tuning_optimizer(rate, scales=lora_plus_scales(params, 16.0))`. The paper advises a
      ratio of about 16 and a rate for A at or below the usual one.

    Args:
      params: the adapters, or the whole tree.
      ratio: rate of B divided by the rate of A, at least 1.
      b: patterns of the B matrices.

    Raises:
      ValueError: no parameter is a B matrix, or `ratio` is below 1.
    """
    if known(ratio) and ratio < 1:
        raise ValueError(f"LoRA+ ratio {ratio} is below 1: B is to learn faster than A")
    factor = float(ratio) if known(ratio) else ratio
    return match_rules([(pattern, factor) for pattern in b], params, default=1.0)
