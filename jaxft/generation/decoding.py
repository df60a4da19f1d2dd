"""Many prompts through a decoder: some sequences at a time, the next prompt in place of one that ended."""

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.generation import programs
from jaxft.generation.sampling import Sampling
from jaxft.models.architecture import Architecture as NativeArchitecture
from jaxft.models.contract import Architecture
from jaxft.models.family import TextLimits
from jaxft.models.tree import Params

_ROW = 512  # tokens of prompts that are read together, where the longest is not longer
_LEAST = 64  # lengths of rows are powers of two from here, those of caches multiples


@dataclasses.dataclass(frozen=True)
class Settings:
    """How texts go on.

    Attributes:
        max_new_tokens: of each text, at most.
        sampling: how each is chosen.
        eos: tokens after which a text ends; they belong to it.
        stop: strings after which it ends; the token that completes one belongs to it.
        sequences: that are computed at a time.
        dtype: of the blocks' activations and of the cache.
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
    """The tokens that follow each prompt.

    Greedy choices are transformers' token for token, up to rounding of logits that are nearly equal.

    Args:
        architecture: of a causal family, with the head 'causal'.
        params: in the structure of `architecture.whole`, on one device.
        prompts: token ids, at least one each.
        text: of token ids; needed for `settings.stop`.
        told: called with the number of texts that are done, now and then.

    Raises:
        ValueError: a model that does not predict the next token, a prompt that is empty, too long
            for the model with what may follow, or has ids that are none; one line.
    """
    native = check(architecture, prompts, settings)
    if settings.stop and text is None:
        raise ValueError("stop strings need the tokenizer's `text`")
    run = _Run(native, params, prompts, settings, text)
    while run.waiting or any(owner is not None for owner in run.owners):
        run.begin()
        run.go_on()
        told(run.done)
    return run.found


def check(
    architecture: Architecture, prompts: Sequence[Sequence[int]], settings: Settings
) -> NativeArchitecture:
    """The architecture, if `generate` can take it and the prompts.

    Raises:
        ValueError: as `generate`.
    """
    name = architecture.model_type
    if not isinstance(architecture, NativeArchitecture):
        raise ValueError(
            f"{name!r} is bridged, and a bridged module keeps nothing of the tokens before: it does not "
            "generate"
        )
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
    return architecture


class _Run:
    """What the host knows: which prompts wait, whose sequence is whose, what was found."""

    def __init__(
        self,
        architecture: NativeArchitecture,
        params: Params,
        prompts: Sequence[Sequence[int]],
        settings: Settings,
        text: Callable[[Sequence[int]], str] | None,
    ):
        self.settings, self.prompts, self.text = settings, prompts, text
        self.found: list[list[int]] = [[] for _ in prompts]
        self.waiting, self.done = deque(range(len(prompts))), 0
        self.owners: list[int | None] = [None] * max(1, min(settings.sequences, len(prompts)))
        longest = max(map(len, prompts), default=1)
        self.row = max(_ROW, _power(longest))
        slots = -(-(longest + settings.max_new_tokens) // _LEAST) * _LEAST
        structure = settings.sampling.structure
        self.fixed = {
            "architecture": architecture,
            "structure": structure,
            "dtype": np.dtype(settings.dtype),
        }
        self.params = params
        self.given = (settings.sampling.numbers,)
        self.ends = np.asarray(settings.eos or (-1,), np.int32)
        self.state = programs.first(
            architecture, len(self.owners), slots, settings.dtype, structure.penalty
        )

    def begin(self) -> None:
        """Give free sequences the prompts that come next, as many as fit a row."""
        free = [n for n, owner in enumerate(self.owners) if owner is None]
        while free and self.waiting:
            taken: list[int] = []
            tokens = 0
            while len(taken) < len(free) and self.waiting:
                tokens += len(self.prompts[self.waiting[0]])
                if tokens > self.row:
                    break
                taken.append(self.waiting.popleft())
            row = _packed([self.prompts[n] for n in taken], taken, free, len(self.owners))
            self.state, first = programs.begin(
                self.params, self.state, row, *self.given, **self.fixed
            )
            for sequence, prompt, token in zip(free, taken, np.asarray(first), strict=False):
                self.owners[sequence] = prompt
                self._take(sequence, [int(token)])
            free = [n for n, owner in enumerate(self.owners) if owner is None]

    def go_on(self) -> None:
        """Up to CHUNK more tokens of every sequence that has not ended."""
        live = np.array([owner is not None for owner in self.owners])
        if not live.any():
            return
        self.state, tokens = programs.go_on(
            self.params, self.state, live, np.int32(self.settings.max_new_tokens), self.ends,
            *self.given, **self.fixed,
        )  # fmt: skip
        rows = np.asarray(tokens)
        for sequence in np.flatnonzero(live):
            own = rows[sequence]
            self._take(int(sequence), own[own >= 0].tolist())

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


def _packed(
    prompts: Sequence[Sequence[int]], numbers: Sequence[int], free: Sequence[int], count: int
) -> dict[str, np.ndarray]:
    """Prompts in one row, and [K] for each of at most `count`: whose it is, where it begins and ends."""
    length = _power(sum(map(len, prompts)))
    row = {
        name: np.zeros((1, length), np.int32) for name in ("input_ids", "segment_ids", "positions")
    }
    each = {
        name: np.zeros(count, np.int32) for name in ("sequences", "starts", "lengths", "prompts")
    }
    start = 0
    for n, prompt in enumerate(prompts):
        here = slice(start, start + len(prompt))
        row["input_ids"][0, here] = prompt
        row["segment_ids"][0, here] = n + 1
        row["positions"][0, here] = np.arange(len(prompt))
        each["sequences"][n], each["prompts"][n] = free[n], numbers[n]
        each["starts"][n], each["lengths"][n] = start, len(prompt)
        start = here.stop
    return {**row, **each, "count": np.asarray(len(prompts), np.int32)}


def _power(length: int) -> int:
    return max(_LEAST, 1 << (length - 1).bit_length())
