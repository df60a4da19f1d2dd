"""Every token in its place, the same batches for any process count, and a start at any step."""

import threading
import time

import numpy as np
import pytest

from jaxft.data.batching import plan_evaluation, plan_training
from jaxft.data.files import table
from jaxft.data.images import Augment, Images, Preprocess
from jaxft.data.labels import Labels
from jaxft.data.loader import ImageBatches, TextBatches, iterate
from jaxft.data.text import Tokens


def texts(count, seed=0):
    """Random tokens whose values name their example: 1000 * (j + 1) + position."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(3, 60, count)
    ids = np.concatenate([1000 * (j + 1) + np.arange(n) for j, n in enumerate(lengths)])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    second = generator.integers(1, lengths + 1)
    tokens = Tokens(ids.astype(np.int32), offsets, second.astype(np.int32), cached=False)
    # The source's rows are not the positions: a subset in another order.
    rows = generator.permutation(10 * count)[:count]
    return tokens, Labels(tuple("abc"), rows, generator.integers(0, 3, count).astype(np.int32))


def text_batches(tokens, labels, *, evaluation=False, pack=True, shards=4, **process):
    options = {"batch_size": 16, "shards": shards, "pack": pack}
    plan = (
        plan_evaluation(tokens.lengths, **options)
        if evaluation
        else plan_training(tokens.lengths, steps=12, seed=3, **options)
    )
    return TextBatches(tokens, labels, plan, **process)


def read_examples(batch):
    """Takes the batch apart as a model would: {row in the source: (ids, types, label)}."""
    found = {}
    for row, slot in zip(*np.nonzero(batch["weight"]), strict=True):
        own = np.flatnonzero(batch["segment_ids"][row] == slot + 1)
        assert own[0] == batch["starts"][row, slot]
        np.testing.assert_array_equal(own, own[0] + np.arange(len(own)))
        np.testing.assert_array_equal(batch["positions"][row, own], np.arange(len(own)))
        index = int(batch["index"][row, slot])
        assert index not in found
        found[index] = (
            batch["input_ids"][row, own].tolist(),
            batch["token_type_ids"][row, own].tolist(),
            int(batch["labels"][row, slot]),
        )
    return found


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("evaluation", [True, False])
def test_every_token_is_in_its_place(pack, evaluation):
    tokens, labels = texts(90)
    batches = text_batches(tokens, labels, evaluation=evaluation, pack=pack)
    epoch = len(batches) if evaluation else batches.plan.sampler.steps_per_epoch
    found = {}
    for step in range(epoch):
        batch = batches[step]
        for key in ("input_ids", "segment_ids", "positions", "token_type_ids"):
            assert batch[key].dtype == np.int32 and batch[key].shape == batch["input_ids"].shape
            assert not batch[key][batch["segment_ids"] == 0].any()  # padding is zeros
        for key in ("starts", "labels", "index", "weight"):
            assert batch[key].dtype == (np.float32 if key == "weight" else np.int32)
        empty = batch["weight"] == 0
        assert (batch["index"][empty] == -1).all() and not batch["labels"][empty].any()
        examples = read_examples(batch)
        assert not set(examples) & set(found)
        found |= examples
    assert set(found) == set(labels.rows.tolist())  # exactly once an epoch
    for position, row in enumerate(labels.rows.tolist()):
        ids, types, label = found[row]
        first, last = tokens.offsets[position : position + 2]
        assert ids == tokens.ids[first:last].tolist()
        assert types == [int(i >= tokens.second[position]) for i in range(len(ids))]
        assert label == labels.ids[position]


def image_batches(*, steps=6, shards=4, **process):
    pixels = np.random.default_rng(0).integers(0, 256, (22, 8, 8), np.uint8)
    rows = np.arange(1, 22)
    images = Images(
        table("a", {"image": pixels}),
        rows,
        "image",
        Preprocess(8, 8, 1),
        augment=Augment(crop_scale=(0.5, 1.0), flip=True) if steps else None,
    )
    labels = Labels(tuple("ab"), rows, (rows % 2).astype(np.int32))
    return ImageBatches(images, labels, batch_size=6, steps=steps, seed=1, shards=shards, **process)


def make(kind, **process):
    if kind == "images":
        return image_batches(**process)
    return text_batches(*texts(90), evaluation=kind == "evaluation", **process)


@pytest.mark.parametrize("kind", ["training", "evaluation", "images"])
@pytest.mark.parametrize("count", [2, 4])
def test_processes_hold_slices_of_one_global_batch(kind, count):
    whole = make(kind)
    parts = [make(kind, process_index=index, process_count=count) for index in range(count)]
    for step in (0, len(whole) - 1, 2):
        batches = [part[step] for part in parts]
        for key, value in whole[step].items():
            np.testing.assert_array_equal(np.concatenate([b[key] for b in batches]), value)


@pytest.mark.parametrize("kind", ["training", "evaluation", "images"])
def test_blank_batches_have_the_shapes_of_the_real_ones(kind):
    batches = make(kind, process_index=1, process_count=2)

    def shapes(found):
        return {tuple((k, v.shape, v.dtype) for k, v in batch.items()) for batch in found}

    blank = batches.blank()
    # Some shapes are for batches that this seed may not draw.
    assert shapes(blank) >= shapes(batches[step] for step in range(len(batches)))
    assert not any(batch["weight"].any() for batch in blank)
    near = range(1, 3)
    assert shapes(blank) >= shapes(batches.blank(near)) >= shapes(batches[step] for step in near)


def test_more_processes_than_shards_are_refused():
    with pytest.raises(ValueError, match="cannot be divided over 5 processes"):
        image_batches(process_index=0, process_count=5)[0]


@pytest.mark.parametrize("kind", ["training", "images"])
def test_starting_at_a_step_equals_skipping_to_it(kind):
    put = {"put": lambda batch: batch}
    from_start = list(iterate(make(kind), **put))
    assert len(from_start) == len(make(kind))
    resumed = list(iterate(make(kind), start=3, stop=5, threads=4, ahead=3, **put))
    assert len(resumed) == 2
    for expected, batch in zip(from_start[3:5], resumed, strict=True):
        for key in expected:
            np.testing.assert_array_equal(expected[key], batch[key])


@pytest.mark.parametrize("steps", [6, None])
def test_no_images_are_refused(steps):
    images = Images(table("a", {"image": [0]}), np.zeros(0, int), "image", Preprocess(8, 8, 1))
    labels = Labels(("a", "b"), np.zeros(0, int), np.zeros(0, np.int32))
    with pytest.raises(ValueError, match="no examples to make batches of"):
        ImageBatches(images, labels, batch_size=6, steps=steps, seed=1)


def test_image_batches_cover_an_epoch_and_pad_the_last():
    batches = image_batches()
    assert len(batches) == 6 and batches.sampler.steps_per_epoch == 4
    for epoch_steps in (range(4), range(4, 6)):
        indices = np.concatenate([batches[step]["index"] for step in epoch_steps])
        real = indices[indices >= 0]
        assert len(set(real.tolist())) == len(real)
    last = batches[3]
    assert last["pixel_values"].shape == (8, 8, 8, 1)  # 6 images, padded for 4 shards
    assert last["weight"].tolist() == [1.0] * 3 + [0.0] * 5
    assert not last["pixel_values"][3:].any() and not last["labels"][3:].any()
    for row, label in zip(last["index"][:3], last["labels"][:3], strict=True):
        assert label == row % 2


def test_image_evaluation_is_in_order_and_unaugmented():
    batches = image_batches(steps=None)
    indices = np.concatenate([batches[step]["index"] for step in range(len(batches))])
    assert indices[indices >= 0].tolist() == list(range(1, 22))
    source = np.random.default_rng(0).integers(0, 256, (22, 8, 8), np.uint8)
    expected = source[1].astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(batches[0]["pixel_values"][0, ..., 0], expected, atol=1e-6)


# Reading ahead


class Recording:
    """Ten batches; counts what was asked for and fails where it is told to."""

    def __init__(self, fail_at=None):
        self.asked, self.fail_at = [], fail_at

    def __len__(self):
        return 10

    def __getitem__(self, step):
        self.asked.append(step)
        if step == self.fail_at:
            raise ValueError("a.csv, line 7: broken")
        return {"step": np.array(step)}


def test_batches_are_put_ahead_in_order():
    put = []

    def place(batch):
        put.append(int(batch["step"]))
        return int(batch["step"])

    stream = iterate(Recording(), put=place, ahead=2)
    assert next(stream) == 0 and put == [0, 1, 2]
    assert next(stream) == 1 and put == [0, 1, 2, 3]
    assert list(stream) == list(range(2, 10)) and put == list(range(10))


def test_an_error_reaches_the_caller_as_it_was():
    stream = iterate(Recording(fail_at=4), put=lambda batch: int(batch["step"]), ahead=1)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError) as error:
        next(stream)
    assert str(error.value) == "a.csv, line 7: broken"


def test_an_error_in_put_is_raised_and_everything_is_closed():
    before = set(threading.enumerate())

    def fail(batch):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        next(iterate(Recording(), put=fail))
    stream = iterate(Recording(), put=lambda batch: batch)
    next(stream)
    stream.close()
    deadline = time.monotonic() + 20  # a thread ends once it has finished what it is making
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


def test_only_what_is_near_is_read():
    batches = Recording()
    stream = iterate(batches, put=lambda batch: batch, threads=1, ahead=1)
    next(stream)
    stream.close()
    assert max(batches.asked) <= 4


def test_an_empty_range_is_empty():
    assert list(iterate(Recording(), start=10, put=lambda batch: batch)) == []
