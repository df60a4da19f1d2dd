"""Which tokens of rows that are cut over devices each of them works on, so that all have as much to do.

Of a causal row, the first device's queries see one slice of n, and the last one's all. Keys go around at the
pace of the slowest, so the others wait: each row takes n slices' time, where (n + 1) / 2 are seen on average.
So a device works on the first half of its own slice, and on the second half of that of the device as far from
the end of the row as it is from the beginning, with which it exchanges second halves. Of 2n halves, device i
then has number 2i and 2n - 1 - 2i. Of any other device's two, queries in these see one half each; of its own
they see three pairs. That is the balance of Llama 3 (arXiv:2407.21783, section 3.3.2), where device i has
chunks i and 2n - 1 - i and most would have to be sent. By the stripes of Brandon et al., 2023
(arXiv:2311.09431), nearly all tokens would, and more chunks would be seen in part.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxft.models.layers.blockwise import chunk_of

# Keys that the slowest device need not compute for each of its queries: from there on the exchange pays. For
# a head of width C that spares 14 * C * SPARED operations of a query, forward and backward, and half of the
# queries, outputs and their gradients are sent, 2 * C numbers a query and up to C more of keys and values. In
# bf16 these are 1,200 operations a byte, about what an accelerator does while it receives one. Not measured.
SPARED = 512


class Slices(NamedTuple):
    """Of tokens.

    Attributes:
        devices: that cut a row.
        length: of the slice of each.
        paired: second halves are exchanged.
    """

    devices: int
    length: int
    paired: bool

    @classmethod
    def of(cls, devices: int, length: int, causal: bool, reach: int | None) -> Slices:
        """Exchanged if that spares the slowest enough: not where all see each other, nor where a sliding
        window leaves as much to do for each device, nor in short rows."""
        own = cls(devices, length, False)
        if devices == 1 or length % 2:
            return own
        paired = cls(devices, length, True)
        spared = own.slowest(causal, reach) - paired.slowest(causal, reach)
        return paired if spared > SPARED * length else own

    @property
    def size(self) -> int:
        """Tokens of a chunk."""
        return chunk_of(self.length // 2 if self.paired else self.length)

    def other(self, device: int) -> int:
        """The one with which it exchanges."""
        return self.devices - 1 - device

    def firsts(self, device: Any) -> Any:
        """Of the chunks [..., N] that devices [...] work on, the number of the first token in the row."""
        number = np.arange(self.length // self.size, dtype=np.int32) * self.size
        device = device * self.length
        if not self.paired:
            return device[..., None] + number
        turns = number < self.length // 2
        # Of the other's slice, whose first is `other * length`.
        start = np.where(turns, number, (self.devices - 1) * self.length + number)
        return start + np.where(turns, 1, -1) * device[..., None]

    def pairs(self, causal: bool, reach: int | None) -> np.ndarray:
        """Of rows of one text, the pairs of chunks [device, step] in which a query sees a key."""
        numbers = np.arange(self.devices)
        firsts = self.firsts(numbers)
        owners = (numbers[:, None] - numbers) % self.devices
        before = firsts[:, None, :, None] - firsts[owners][:, :, None, :]
        seen = before > (-self.size if causal else -np.inf)
        if reach is not None:
            seen = seen & (np.abs(before) - (self.size - 1) <= reach)
        return seen.sum((2, 3))

    def slowest(self, causal: bool, reach: int | None) -> int:
        """Over all steps, the pairs of a query and a key in chunks of the device with the most of them."""
        return int(self.pairs(causal, reach).max(0).sum()) * self.size**2
