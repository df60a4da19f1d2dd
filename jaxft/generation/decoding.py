"""Many prompts through a decoder: some sequences at a time, the next prompt in place of one that ended."""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.generation.cached import Kept
from jaxft.generation.rereading import Rows, check_rereads
from jaxft.generation.sampling import Sampling
from jaxft.models.architecture import Architecture as NativeArchitecture
from jaxft.models.contract import Architecture, Rereading
from jaxft.models.family import TextLimits
from jaxft.models.tree import Params


@dataclasses.dataclass(frozen=True)
class Settings:
    """How texts go on.

    Attributes:
        max_new_tokens: of each text, at most.
        sampling: how each is chosen.
        eos: tokens after which a text ends; they belong to it.
        stop: strings after which it ends; the token that completes one belongs to it.
        sequences: that are computed at a time.
        dtype: of the blocks' activations and of the cache; of a bridged model, of all its numbers.
    """

    max_new_tokens: int = 128
    sampling: Sampling = Sampling()  # noqa: RUF009 frozen
    eos: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    sequences: int = 16
    dtype: jax.typing.DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        """ValueError: one line with the first setting that cannot be."""
        for name in ("max_new_tokens", "sequences"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError(
                f"stop is {self.stop!r}; it must be a list of strings, none of them empty"
            )


def generate(
    architecture: Architecture,
    params: Params,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    *,
    text: Callable[[Sequence[int]], str] | None = None,
    told: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:
    """The tokens that follow each prompt; a bridged model reads them again for each token.

    Greedy choices are transformers' token for token, up to rounding of logits that are nearly equal.

    Args:
        architecture: with the head 'causal'.
        params: in the structure of `architecture.whole`, on one device.
        prompts: token ids, at least one each.
        text: of token ids; needed for `settings.stop`.
        told: called with the number of texts that are done, now and then.

    Raises:
        ValueError: a model that does not predict the next token, a prompt that is empty, too long
            for the model with what may follow, or has ids that are none; one line.
    """
    check(architecture, prompts, settings)
    if settings.stop and text is None:
        raise ValueError("stop strings need the tokenizer's `text`")
    run = _Run(architecture, params, prompts, settings, text)
    while run.waiting or any(owner is not None for owner in run.owners):
        run.begin()
        run.go_on()
        told(run.done)
    return run.found


def check(architecture: Architecture, prompts: Sequence[Sequence[int]], settings: Settings) -> None:
    """Raises ValueError, as `generate`, if it cannot take the architecture or the prompts."""
    name = architecture.model_type
    if architecture.head == "seq2seq":
        raise ValueError(
            f"{name!r} writes a text for one that it reads and goes on with none: predict, without "
            "max_new_tokens, gives its texts"
        )
    if architecture.head != "causal":
        raise ValueError(
            f"{name!r} with a head for {architecture.head!r} does not predict the next token; what was "
            "trained by causal_lm, instruction or preference does"
        )
    check_rereads(architecture)
    limits = architecture.limits
    assert isinstance(limits, TextLimits)
    for number, prompt in enumerate(prompts, start=1):
        if not len(prompt):
            raise ValueError(
                f"prompt {number} has no token; give one at least, such as the first of texts"
            )
        if len(prompt) + settings.max_new_tokens > limits.positions:
            raise ValueError(
                f"prompt {number} has {len(prompt):,} tokens; with max_new_tokens="
                f"{settings.max_new_tokens:,} that is more than the {limits.positions:,} positions of the "
                f"model; at most {max(0, limits.positions - len(prompt)):,} new ones can follow"
            )
        if min(prompt) < 0 or max(prompt) >= limits.vocabulary:
            raise ValueError(
                f"prompt {number} has ids that are not from 0 to {limits.vocabulary - 1:,}: it is of another "
                "tokenizer"
            )


class Sequences(Protocol):
    """Texts that are computed at a time, each in the place of one that has ended."""

    def begin(
        self, free: Sequence[int], waiting: Sequence[tuple[int, Sequence[int]]]
    ) -> list[list[int]]:
        """Give free sequences the prompts that come next, (number, tokens) each, at least one of them;
        of each that was taken the tokens that it has already."""

    def go_on(self, live: np.ndarray) -> list[list[int]]:
        """The next tokens of every sequence; none of those that are not live [B]."""


def _sequences(
    architecture: Architecture, params: Params, prompts: Sequence[Sequence[int]], settings: Settings
) -> Sequences:
    how: dict[str, Any] = {
        "count": max(1, min(settings.sequences, len(prompts))),
        "sampling": settings.sampling,
        "most": settings.max_new_tokens,
        "ends": np.asarray(settings.eos or (-1,), np.int32),
        "dtype": settings.dtype,
    }
    if isinstance(architecture, NativeArchitecture):
        return Kept(architecture, params, longest=max(map(len, prompts), default=1), **how)
    return Rows(cast(Rereading, architecture), params, **how)


class _Run:
    """What the host knows: which prompts wait, whose sequence is whose, what was found."""

    def __init__(
        self,
        architecture: Architecture,
        params: Params,
        prompts: Sequence[Sequence[int]],
        settings: Settings,
        text: Callable[[Sequence[int]], str] | None,
    ):
        self.settings, self.prompts, self.text = settings, prompts, text
        self.found: list[list[int]] = [[] for _ in prompts]
        self.waiting, self.done = deque(range(len(prompts))), 0
        self.owners: list[int | None] = [None] * max(1, min(settings.sequences, len(prompts)))
        self.sequences = _sequences(architecture, params, prompts, settings)

    def begin(self) -> None:
        """Give free sequences the prompts that come next."""
        while self.waiting and (
            free := [n for n, owner in enumerate(self.owners) if owner is None]
        ):
            next_ones = itertools.islice(self.waiting, len(free))
            waiting = [(number, self.prompts[number]) for number in next_ones]
            started = self.sequences.begin(free, waiting)
            for sequence, tokens in zip(free, started, strict=False):
                self.owners[sequence] = self.waiting.popleft()
                self._take(sequence, tokens)

    def go_on(self) -> None:
        """Some more tokens of every sequence that has not ended."""
        live = np.array([owner is not None for owner in self.owners])
        if not live.any():
            return
        found = self.sequences.go_on(live)
        for sequence in np.flatnonzero(live):
            self._take(int(sequence), found[sequence])

    def _take(self, sequence: int, tokens: list[int]) -> None:
        """Add tokens to a text; where it ends, its sequence is free."""
        prompt = self.owners[sequence]
        assert prompt is not None
        found = self.found[prompt]
        before = len(found)
        found += tokens
        stopped = self._stop(found, before)
        ended = stopped or bool(found and found[-1] in self.settings.eos)
        if ended or len(found) >= self.settings.max_new_tokens:
            self.owners[sequence] = None
            self.done += 1

    def _stop(self, found: list[int], before: int) -> bool:
        """Whether a stop string is in the text, which is then cut after the token that completes it."""
        if not self.settings.stop or self.text is None:
            return False
        if not any(string in self.text(found) for string in self.settings.stop):
            return False
        for count in range(before + 1, len(found) + 1):
            if any(string in self.text(found[:count]) for string in self.settings.stop):
                del found[count:]
                return True
        return False
