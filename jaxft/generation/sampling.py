"""How the next token is chosen: the likeliest one, or one drawn from what the filters leave.

Each filter is transformers' own, in its order: repetition penalty, temperature, top-k, top-p, min-p. A
draw depends on the seed, the number of the prompt and that of the token alone, so it does not matter which
other prompts are there, nor when a prompt has its turn.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

_OUT = -jnp.inf


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What is drawn from. The defaults give the likeliest token.

    Attributes:
        temperature: logits are divided by it; 0: the likeliest token, whatever the filters are.
        top_k: tokens that are left, the likeliest; 0: all.
        top_p: the fewest likeliest tokens with so much of the probability are left (Holtzman et al.,
            2020, arXiv:1904.09751); 1: all.
        min_p: those at least so likely, relative to the likeliest (Nguyen et al., 2024,
            arXiv:2407.01082); 0: all.
        repetition_penalty: logits of tokens that stand in the prompt or were chosen are divided by it
            where positive, else multiplied (Keskar et al., 2019, arXiv:1909.05858); 1: they stay.
        seed: of the draws.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """ValueError: one line with the first setting that cannot be."""
        for name, fits, allowed in (
            (
                "temperature",
                0 <= self.temperature < math.inf,
                "at least 0 (0: the likeliest token)",
            ),
            ("top_k", isinstance(self.top_k, int) and self.top_k >= 0, "a whole number, 0 for all"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0"),
            ("seed", isinstance(self.seed, int) and 0 <= self.seed < 2**32, "from 0 to 2**32 - 1"),
        ):
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {allowed}")

    @property
    def structure(self) -> "Structure":
        """What a program is compiled for."""
        draws = self.temperature > 0
        return Structure(
            draws,
            self.top_k if draws else 0,
            draws and self.top_p < 1,
            draws and self.min_p > 0,
            self.repetition_penalty != 1,
        )

    @property
    def numbers(self) -> "Numbers":
        """What it is given."""
        return Numbers(
            jnp.float32(self.temperature),
            jnp.float32(self.top_p),
            jnp.float32(self.min_p),
            jnp.float32(self.repetition_penalty),
            jnp.uint32(self.seed),
        )


class Structure(NamedTuple):
    """Which of the settings are at work."""

    draws: bool
    top_k: int
    top_p: bool
    min_p: bool
    penalty: bool


class Numbers(NamedTuple):
    """Their values, scalars."""

    temperature: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    penalty: jax.Array
    seed: jax.Array


def choose(
    logits: jax.Array,
    prompts: jax.Array,
    places: jax.Array,
    seen: jax.Array | None,
    structure: Structure,
    numbers: Numbers,
) -> jax.Array:
    """Logits [B, V] fp32 -> tokens [B] int32.

    Args:
        prompts: [B] int32, the number of each prompt.
        places: [B] int32, the number of the token that is chosen, from 0 on.
        seen: [B, V] bool, the tokens that stand before; needed for a penalty alone.
    """
    if structure.penalty:
        assert seen is not None
        lower = jnp.where(logits > 0, logits / numbers.penalty, logits * numbers.penalty)
        logits = jnp.where(seen, lower, logits)
    if not structure.draws:
        return likeliest(logits)
    logits = filtered(logits / numbers.temperature, structure, numbers)
    root = jax.random.key(numbers.seed)

    def noise(prompt, place):
        key = jax.random.fold_in(jax.random.fold_in(root, prompt), place)
        return jax.random.gumbel(key, logits.shape[-1:])

    # The largest of logits with Gumbel noise is a draw from their softmax.
    return likeliest(logits + jax.vmap(noise)(prompts, places))


def likeliest(logits: jax.Array) -> jax.Array:
    """The first of the largest, [B, V] -> [B] int32.

    In two passes, as XLA:CPU does not vectorise an argmax: [16, 50257] 0.6 ms and not 3.7.
    """
    last = logits.shape[-1] - 1
    places = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    largest = logits >= logits.max(-1, keepdims=True)
    return jnp.where(largest, places, last).min(-1)


def filtered(logits: jax.Array, structure: Structure, numbers: Numbers) -> jax.Array:
    """[B, V] with minus infinity where a token is not left."""
    if 0 < structure.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, structure.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, _OUT, logits)
    if structure.top_p:
        # From the least likely on, tokens go as long as they have at most 1 - top_p together.
        order = jnp.argsort(logits, stable=True)
        share = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(logits, order, -1)), -1)
        out = share <= 1 - numbers.top_p
        out = out.at[:, -1].set(False)
        logits = jnp.where(jnp.put_along_axis(out, order, out, -1, inplace=False), _OUT, logits)
    if structure.min_p:
        shares = jax.nn.softmax(logits)
        logits = jnp.where(shares < numbers.min_p * shares.max(-1, keepdims=True), _OUT, logits)
    return logits
