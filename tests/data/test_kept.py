"""What is kept of a frozen prefix: its files, and its way into the rows of batches."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxft.data import kept as kept_files
from jaxft.data.batching import plan_evaluation
from jaxft.data.filling import fill_kept, fill_text, places_of
from jaxft.data.kept import Kept, Schedule, read_part, shards, with_parts, write_part
from jaxft.data.targets import offsets_of
from jaxft.data.tokens import grouped, make_tokens

ROOT = Path(__file__).parent.parent.parent
FLOAT = np.dtype(np.float32)
many = pytest.mark.parametrize("seed", range(20))


def texts(lengths: list[int]):
    """Tokens whose ids are their own numbers, from 1."""
    sizes = np.array(lengths, np.int32)
    return make_tokens(sizes, sizes, np.arange(1, sizes.sum() + 1, dtype=np.int32))


def of_tokens(tokens, cuts: list[int]) -> Kept:
    """Of each token its id, twice; in parts of so many tokens."""
    vectors = np.repeat(np.asarray(tokens.ids)[:, None], 2, 1).astype(np.float32)
    kept = Kept(1, "after_block_1", "tokens", (2,), FLOAT, tokens.offsets[:-1])
    return with_parts(kept, np.split(vectors, cuts))


@many
def test_vectors_lie_where_their_tokens_lie(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 10, rng.integers(2, 13)).tolist()
    tokens = texts(lengths)
    cuts = np.sort(rng.integers(0, sum(lengths) + 1, rng.integers(0, 4))).tolist()
    slots = np.full((4, 3), -1)
    chosen = rng.permutation(len(lengths))[: rng.integers(0, 5)]
    slots[np.arange(len(chosen)), 0] = chosen
    ids = fill_text(tokens, slots, 32)["input_ids"]
    found = fill_kept(of_tokens(tokens, cuts), tokens, slots, 32)["after_block_1"]
    np.testing.assert_array_equal(found, np.repeat(ids[..., None], 2, -1))
    # Of some of the texts, in another order, what is kept of all of them serves, too.
    order = rng.permutation(len(lengths))
    taken = of_tokens(tokens, cuts).take(order)
    own = np.concatenate([np.asarray(tokens.ids)[a:b] for a, b in bounds(tokens, order)])
    other = make_tokens(tokens.lengths[order], tokens.second[order], own)
    np.testing.assert_array_equal(
        fill_kept(taken, other, slots, 32)["after_block_1"][..., 0],
        fill_text(other, slots, 32)["input_ids"],
    )


def bounds(tokens, order):
    return [(tokens.offsets[i], tokens.offsets[i + 1]) for i in order]


def test_of_examples_of_several_texts_each_has_its_own():
    tokens = grouped(texts([3, 2, 4, 1, 2, 2]), 2)
    slots = np.array([[2, -1], [0, 1]])
    kept = Kept(2, "after_block_2", "texts", (), FLOAT, np.arange(3) * 2)
    kept = with_parts(kept, [np.arange(10, 16, dtype=np.float32)])
    found = fill_kept(kept, tokens, slots, 16)["after_block_2"]
    np.testing.assert_array_equal(found, [[14, 15, 0, 0], [10, 11, 12, 13]])
    places = places_of(kept, tokens, slots, 16)
    assert places.shape == fill_text(tokens, slots, 16)["starts"].shape


def test_images_are_kept_whole():
    array = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    kept = with_parts(Kept(1, "after_block_1", "images", (3, 2), FLOAT, np.arange(4)), [array])
    found = fill_kept(kept, None, np.array([3, 0, -1]))["after_block_1"]
    np.testing.assert_array_equal(found, [array[3], array[0], np.zeros((3, 2))])
    assert kept.nbytes == array.nbytes


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_file_gives_back_every_bit_and_a_damaged_one_nothing(tmp_path, dtype):
    dtype, path = np.dtype(dtype), tmp_path / "deep" / "x.prefix.00000.npy"
    array = np.random.default_rng(0).normal(size=(5, 3)).astype(dtype)
    assert read_part(path, 5, (3,), dtype) is None
    write_part(path, array)
    found = read_part(path, 5, (3,), dtype)
    assert found.dtype == dtype and found.tobytes() == array.tobytes()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    for units, unit, kind in ((4, (3,), dtype), (5, (4,), dtype), (5, (3,), np.dtype(np.float64))):
        assert read_part(path, units, unit, kind) is None
    path.write_bytes(path.read_bytes()[:-1])
    assert read_part(path, 5, (3,), dtype) is None


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_what_could_not_be_written_is_not_there(tmp_path, monkeypatch, error):
    path = tmp_path / "x.prefix.00000.npy"

    def fails(file, *rest, **more):
        file.write(b"half")
        raise error

    monkeypatch.setattr(kept_files.np, "save", fails)
    with pytest.raises(type(error)) as raised:
        write_part(path, np.zeros((5, 3), np.float32))
    assert not list(tmp_path.iterdir())
    if isinstance(error, OSError):
        assert raised.value.filename == str(path)


@many
def test_files_hold_whole_entries_in_order(seed):
    rng = np.random.default_rng(seed)
    counts, most = rng.integers(0, 21, rng.integers(1, 31)).tolist(), int(rng.integers(1, 41))
    found = shards(np.array(counts), 4, most * 4)
    assert [number for own in found for number in own] == list(range(len(counts)))
    for own in found:
        assert len(own) == 1 or sum(counts[n] for n in own) <= most


@many
def test_an_evaluations_shapes_serve_some_of_its_entries(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 61, rng.integers(3, 61)).astype(np.int32)
    plan = plan_evaluation(sizes, batch_size=4, pack=bool(seed % 2), shards=2)
    some = np.arange(start := int(rng.integers(0, len(sizes))), rng.integers(start, len(sizes)) + 1)
    part = plan.over(some, sizes)
    known = {
        (shape.length, slots.shape[1:])
        for shape, slots in zip(plan.shapes, plan.slots, strict=True)
    }
    seen = []
    for layout in map(part.layout, range(len(part))):
        assert (layout.length, layout.slots.shape) in known
        used = np.where(layout.slots >= 0, sizes[layout.slots], 0).sum(1)
        assert (used <= layout.length).all()
        seen += layout.slots[layout.slots >= 0].tolist()
    assert sorted(seen) == some.tolist()


def test_a_schedule_has_for_each_step_what_its_stage_keeps():
    first = Kept(2, "after_block_2", "texts", (), FLOAT, offsets_of(np.ones(2))[:-1])
    schedule = Schedule(((0, None), (3, first), (5, None)))
    assert [schedule.at(step) for step in range(7)] == [None] * 3 + [first] * 2 + [None] * 2
    assert Schedule().at(0) is None


LARGER = """
import resource, sys
from pathlib import Path
import numpy as np
from jaxft.data.kept import Kept, read_part, with_parts, write_part

folder, rows, width, parts = Path(sys.argv[1]), 1 << 14, 1 << 10, 8  # 64 MiB each
before = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
limit = before + (160 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # of what no file is behind
for number in range(parts):
    write_part(folder / f"{number}.npy", np.full((rows, width), number, np.float32))
found = [read_part(folder / f"{n}.npy", rows, (width,), np.dtype(np.float32)) for n in range(parts)]
kept = with_parts(Kept(1, "x", "texts", (width,), np.dtype(np.float32), np.arange(0)), found)
order = np.random.default_rng(0).permutation(rows * parts)
for units in np.split(order, 128):
    assert (kept[units] == (units // rows)[:, None]).all()
print(kept.nbytes // limit)
"""


@pytest.mark.slow
def test_more_is_kept_than_there_is_memory_for(tmp_path):
    """Written and read, all of it in random order, by a process that may have 160 MiB of its own."""
    run = [sys.executable, "-c", LARGER, str(tmp_path)]
    found = subprocess.run(run, capture_output=True, text=True, check=False, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) >= 1
