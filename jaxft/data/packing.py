"""Examples into rows of a few fixed shapes, with little padding: pure functions of the lengths.

Which examples make a batch is decided earlier, in batching.py, and never changed here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

# Row lengths that may be compiled: steps of about an eighth, so that rounding a length up costs
# some 6 % on average, and multiples of 16, which vector units and matrix units like.
LENGTH_MULTIPLE = 16
ROW_LENGTHS = (
    *range(LENGTH_MULTIPLE, 129, LENGTH_MULTIPLE),
    *(
        length
        for top in (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
        for length in range(top // 2 + top // 8, top + 1, top // 8)
    ),
)

# Texts are cut here where no length is asked for, whatever positions a decoder has.
LONGEST_UNASKED = 8192

# Rows this long may be packed even if every example is shorter: longer rows waste less at their
# ends, and up to here attention (quadratic in the row) is a small part of a transformer's work.
PACKED_LENGTH = 128

# Work of a row of L tokens, in tokens: L + ATTENTION * L * L. A layer of width d does 12 d^2
# multiplications per token and 2 L d for attention, 1 / 2300 at d = 384; softmax and masks move
# more memory than that: 1 / 1000 was measured on a CPU (11 of 175 ms a layer at L = 64).
ATTENTION = 1 / 1000

# Each packed row has one slot per SLOT tokens. An example of two texts has at least 5 tokens;
# rows of many such examples run out of slots before tokens, which packing takes into account.
# Longer rows are there for long examples: each slot is a query of the last block, over the whole row.
SLOT = 8
MOST_SLOTS = 1024


@dataclasses.dataclass(frozen=True, order=True)
class Shape:
    """A compiled shape: each shard of a batch is [rows, length] tokens."""

    length: int
    rows: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.length}"

    @property
    def cost(self) -> float:
        """Its work in tokens (see ATTENTION)."""
        return self.rows * self.length * (1 + ATTENTION * self.length)


def row_length(longest: int) -> int:
    """The smallest allowed row length that holds an example of this length."""
    for length in ROW_LENGTHS:
        if length >= longest:
            return length
    raise ValueError(f"an example has {longest} tokens; rows hold at most {ROW_LENGTHS[-1]}")


def slots_per_row(length: int, pack: bool) -> int:
    """K, the number of examples that a row can hold."""
    return min(max(1, length // SLOT), MOST_SLOTS) if pack else 1


def pack_rows(lengths: Iterable[int], length: int, slots: int) -> list[int]:
    """Puts examples, given longest first, into the fullest row with room: best-fit decreasing.

    Returns the row of each example: pack_rows([9, 6, 4, 1], 10, 8) -> [0, 1, 1, 0].
    It needs at most 11/9 of the fewest possible rows (Johnson 1973), in practice within one.
    """
    rows: list[int] = []
    used: list[int] = []
    free_rows: dict[int, list[int]] = {}
    # Bit f is set if some row has f free tokens: the lowest set bit from an example's length on
    # is the best fit, at the cost of a few integer operations instead of a search.
    free_bits = 0
    for size in lengths:
        fitting = free_bits >> size
        if fitting:
            free = size + (fitting & -fitting).bit_length() - 1
            candidates = free_rows[free]
            row = candidates.pop()
            if not candidates:
                free_bits ^= 1 << free
        else:
            free = length
            row = len(used)
            used.append(0)
        rows.append(row)
        used[row] += 1
        free -= size
        if free and used[row] < slots:
            free_rows.setdefault(free, []).append(row)
            free_bits |= 1 << free
    return rows


def pack_dataset(lengths: np.ndarray, length: int, slots: int) -> np.ndarray:
    """`pack_rows` of a whole dataset: lengths [n] that descend -> rows [n] int32, the same ones.

    Examples of one length are placed together, by numpy: there is one step for each pair of a length and
    a row's room. That is best fit still. A row that was just given an example has less room than any
    other in which one of this length fits, so it is the best fit again until it takes no more.
    """
    found = np.empty(len(lengths), np.int32)
    used = np.zeros(len(lengths), np.int32)  # slots of each row
    rooms: dict[int, list[np.ndarray]] = {}  # free tokens -> stack of rows, in pieces
    opened = done = 0
    sizes, counts = np.unique(lengths, return_counts=True)
    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        end = done + count
        while done < end:
            room = min((free for free in rooms if free >= size), default=0)
            if room:
                rows = np.concatenate(rooms.pop(room))[::-1]
            else:
                room, rows = length, np.arange(opened, opened + end - done)
            fitting = room // size if size else slots
            given = np.minimum(fitting, slots - used[rows])
            total = np.cumsum(given)
            taken = min(int(np.searchsorted(total, end - done)) + 1, len(rows))
            if opened <= rows[0]:
                opened += taken
            elif taken < len(rows):
                rooms[room] = [rows[taken:][::-1]]
            rows, given = rows[:taken], given[:taken]
            given[-1] -= max(0, int(total[taken - 1]) - (end - done))  # the examples ran out
            found[done : done + given.sum()] = np.repeat(rows, given)
            done += int(given.sum())
            used[rows] += given
            for number in np.unique(given).tolist():
                rest = room - number * size
                if rest and len(own := rows[(given == number) & (used[rows] < slots)]):
                    rooms.setdefault(rest, []).append(own)
    return found


def deal(lengths: np.ndarray, shards: int) -> list[np.ndarray]:
    """Positions of each shard's examples, longest first; the shards' sizes differ by at most one.

    Dealt back and forth (0 1 2 2 1 0 0 1 …) in order of length, so that the shards need about as
    many rows: all are padded to the rows of the fullest.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    turn = np.arange(len(lengths)) % (2 * shards)
    shard = np.where(turn < shards, turn, 2 * shards - 1 - turn)
    return [longest_first[shard == s] for s in range(shards)]


def rows_needed(shards: Sequence[np.ndarray], length: int, pack: bool) -> int:
    """Rows of this length that the fullest shard needs; each shard is its lengths, descending."""
    if not pack:
        return max(len(shard) for shard in shards)
    slots = slots_per_row(length, pack)
    return max(max(pack_rows(s.tolist(), length, slots), default=-1) + 1 for s in shards)


def place(
    examples: np.ndarray, rows: Sequence[int] | np.ndarray, count: int, slots: int
) -> np.ndarray:
    """Slots [count, slots] int64: each example in the next free slot of its row, -1 elsewhere."""
    placed = np.full((count, slots), -1, np.int64)
    row = np.asarray(rows, np.int32)
    by_row = np.argsort(row, kind="stable")
    row = row[by_row]
    # In the order of the rows, an example's slot is how far it is from the first of its row.
    placed[row, np.arange(len(row)) - np.searchsorted(row, row)] = examples[by_row]
    return placed


def arrange(
    lengths: np.ndarray, examples: np.ndarray, shape: Shape, shards: int, pack: bool
) -> np.ndarray:
    """Slots [shards * rows, K] of a batch whose examples [n] have these lengths [n]."""
    slots = slots_per_row(shape.length, pack)
    placed = []
    for hand in deal(lengths, shards):
        sizes = lengths[hand].tolist()
        rows = pack_rows(sizes, shape.length, slots) if pack else range(len(sizes))
        placed.append(place(examples[hand], rows, shape.rows, slots))
    return np.concatenate(placed)


# Choosing the shapes


def choose_shapes(
    needs: np.ndarray,
    lengths: Sequence[int],
    tail: np.ndarray,
    max_shapes: int,
    weight: float,
    shape_cost: float,
) -> list[Shape]:
    """The shapes that minimise the work of a run, at most max_shapes of them.

    needs [batches, len(lengths)]: rows that each batch needs at each row length, 0 where its
    longest example does not fit. tail [len(lengths)]: rows that hold other batches of the run too, 0
    where some do not fit. weight: steps of the run per batch given. shape_cost: the work (in tokens)
    that compiling one more program is worth.

    One shape of `tail` comes first and stays; then the shape that saves most is added while it saves
    more than it costs, and finally the added ones are exchanged while that saves anything.
    """
    shapes = [
        Shape(length, int(rows))
        for column, length in enumerate(lengths)
        for rows in np.unique([*needs[:, column], tail[column]])
        if rows
    ]
    costs = np.array([shape.cost for shape in shapes])
    columns = [list(lengths).index(shape.length) for shape in shapes]
    rows = np.array([shape.rows for shape in shapes])
    needed = needs[:, columns]  # [batches, shapes]
    work = np.where((needed > 0) & (needed <= rows), costs, np.inf)
    holds_all = rows == tail[columns]
    chosen = [int(np.argmin(np.where(holds_all, costs, np.inf)))]
    while len(chosen) < max_shapes:
        best = work[:, chosen].min(1, keepdims=True)
        saved = (best - np.minimum(best, work)).sum(0) * weight
        if saved.max() <= shape_cost:
            break
        chosen.append(int(np.argmax(saved)))
    for _ in range(20):  # exchanges settle within a few rounds
        before = list(chosen)
        for place in range(1, len(chosen)):
            others = work[:, chosen[:place] + chosen[place + 1 :]]
            best = others.min(1, keepdims=True, initial=np.inf)
            chosen[place] = int(np.argmin(np.minimum(best, work).sum(0)))
        if chosen == before:
            break
    return sorted({shapes[i] for i in chosen}, key=lambda shape: shape.cost)
