"""Count the matrix products and collectives of a compiled program, from its optimised HLO text.

`cost_analysis()['flops']` counts the body of a scan once; here each product is multiplied by the
trip counts of the loops around it. Convolutions and library calls for a product count as one.
"""

import math
import re
from typing import Any, NamedTuple

from jaxft.planning.hlo import Sent, runs, sent

_PRODUCT = re.compile(
    r"=\s.*?\s(dot|convolution)\(|custom_call_target=\"[^\"]*(?:matmul|gemm|conv)", re.I
)


def count_matmuls(compiled) -> int:
    """Matrix products that one run of `jax.jit(f).lower(*args).compile()` executes, per device.

    Both branches of a conditional count. A loop of unknown length raises ValueError.
    """
    return count_in_text(compiled.as_text())


def count_in_text(text: str) -> int:
    """The same, of HLO text."""
    return sum(times * sum(map(_is_product, lines)) for times, lines in runs(text))


def _is_product(line: str) -> bool:
    return _PRODUCT.search(line) is not None


class Collective(NamedTuple):
    """One of a program.

    Attributes:
      kind: 'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all' or 'collective-permute'.
      shapes: of what one device has of its results, as 'f32[8,4]'.
    """

    kind: str
    shapes: tuple[str, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(map(size_of, self.shapes))


def shape_of(leaf: Any) -> str:
    """'f32[8,4]' of a float32 array, whole."""
    return f"f32[{','.join(map(str, leaf.shape))}]"


def size_of(shape: str) -> int:
    """Bytes of 'f32[8,4]'."""
    kind, _, rest = shape.partition("[")
    bits = 8 if kind == "pred" else int(re.sub(r"\D.*", "", kind.lstrip("abcdefglnoprstu")))
    return math.prod(int(n) for n in rest.rstrip("]").split(",") if n) * bits // 8


def collectives(text: str) -> list[Collective]:
    """Those of optimised HLO text, each channel once: a loop's body counts once.

    TPU's compiler repeats a gather in each computation that it fuses with a part of it, all of one channel.
    A reduce-scatter is there an all-reduce in a computation of that name, with the slice that is kept: its
    shape here is that of the whole.
    """
    return [Collective(one.kind, _shapes(one)) for one in sent(text)]


def _shapes(one: Sent) -> tuple[str, ...]:
    shapes = tuple(re.findall(r"\w+\[[\d,]*\]", one.result))
    if one.starts and one.kind == "all-gather":  # of its start: what goes in, and what comes out
        shapes = shapes[len(shapes) // 2 :]
    return shapes
