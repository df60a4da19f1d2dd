"""Rotary position embeddings (Su et al., 2021, arXiv:2104.09864), in fp32 from the angle on.

A pair is an element of the first half of a head and that of the second, as transformers stores them. In
bf16, which has eight bits, positions beyond 256 would be rounded.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Frequencies = tuple[float, ...]  # of one head, width / 2 of them; fp32 values
Table = tuple[jax.Array, jax.Array]  # cosines and sines [B, T, width / 2] fp32


def frequencies(parameters: Mapping[str, Any], width: int) -> Frequencies:
    """The angle from one position to the next for each pair of a head of `width`.

    Computed in fp32 in transformers' order, so that the angles of late positions are the same.

    Args:
        parameters: HF's `rope_parameters` with rope_type 'default', 'linear' or 'llama3', or
            'dynamic', which is the default up to `max_position_embeddings`.
    """
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    plain = np.float32(1) / np.float32(parameters["rope_theta"]) ** exponents
    scalings = {"linear": _linear, "llama3": _llama3}
    scaling = scalings.get(parameters["rope_type"], lambda same, _: same)
    return tuple(float(x) for x in scaling(plain, parameters))


def _linear(plain: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
    return plain / np.float32(parameters["factor"])


def _llama3(plain: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
    """Long waves are stretched by the factor, short ones stay, those between go over smoothly."""
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    context = parameters["original_max_position_embeddings"]
    waves = np.float32(2 * np.pi) / plain
    stretched = plain / np.float32(parameters["factor"])
    smooth = (np.float32(context) / waves - np.float32(low)) / np.float32(high - low)
    between = (1 - smooth) * stretched + smooth * plain
    return np.where(
        waves > context / low, stretched, np.where(waves < context / high, plain, between)
    )


def table(positions: jax.Array, of: Frequencies) -> Table:
    """For positions [B, T] of the tokens, each in its own example."""
    angles = positions.astype(jnp.float32)[:, :, None] * jnp.asarray(of, jnp.float32)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, by: Table) -> jax.Array:
    """Heads [B, T, H, width], turned by their positions; in the dtype of `x`."""
    cosines, sines = (part[:, :, None, :] for part in by)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cosines - second * sines, second * cosines + first * sines)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
