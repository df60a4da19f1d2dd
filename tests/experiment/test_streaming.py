"""A run over a stream: every row once a pass, the same for any number of processes, resumed bitwise."""

import csv
import json

import datasets
import numpy as np
import pytest

import jaxft
from jaxft import train
from jaxft.api import make_config
from jaxft.data.stream import Position
from jaxft.experiment.encoder import Slicing, make_encoder
from jaxft.experiment.prepared import prepare
from jaxft.experiment.streaming import Place, stream_batches
from jaxft.models import hf
from tests import worlds
from tests.worlds import ROOT


@pytest.fixture(scope="module")
def world(world, tmp_path_factory):
    """With the training rows as JSON, since `datasets` leaves a table open of which it reads a part."""
    folder = tmp_path_factory.mktemp("streamed")
    for name in ("one_block", "test.csv", "train.csv"):
        (folder / name).symlink_to(world / name)
    with (world / "train.csv").open() as file:
        lines = [json.dumps(row) for row in csv.DictReader(file)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    return folder


def fields(world, **more):
    own = {"data.stream": 50, "data.eval": str(world / "test.csv"), "train.steps": 24}
    own |= {
        "eval.every": "12 steps",
        "checkpoint.every_steps": 8,
        "model.path": str(world / "one_block"),
    }
    return worlds.fields(world, "train.jsonl", 16, **(own | more))


def batches_of(world, process=0, processes=1, **more):
    config = make_config(f"{ROOT}/configs/text_classification.py", fields(world, **more))
    prepared = prepare(config)
    splits = prepared.splits
    encoder = make_encoder(
        config, "text", hf.resolve(config.model.path), prepared.architecture.limits, splits, None
    )
    cut = Slicing(processes, process_index=process, process_count=processes)
    return stream_batches(encoder, splits.train, splits.blocks, config, 24, cut)


def examples(batch):
    """Of a batch (tokens, label) of every example, sorted."""
    found = []
    for row in range(len(batch["starts"])):
        for slot in np.flatnonzero(batch["weight"][row]):
            ids = batch["input_ids"][row][batch["segment_ids"][row] == slot + 1]
            found.append((tuple(ids.tolist()), int(batch["labels"][row, slot])))
    return sorted(found)


def test_each_row_is_read_once_a_pass_in_an_order_of_its_own(world):
    with (world / "train.csv").open() as file:
        rows = len(list(csv.reader(file))) - 1
    streamed = batches_of(world)
    steps = sum(-(-min(50, rows - n) // 16) for n in range(0, rows, 50))  # of a pass
    first = [examples(streamed[step]) for step in range(steps)]
    again = [examples(streamed[step]) for step in range(steps, min(2 * steps, 24))]
    whole = batches_of(world, **{"data.stream": 10_000})
    every = sorted(e for step in range(-(-rows // 16)) for e in examples(whole[step]))
    assert sorted(e for batch in first for e in batch) == every
    assert first[: len(again)] != again


def test_processes_cut_the_same_batches(world):
    alone = batches_of(world)
    parts = [batches_of(world, process, 2) for process in range(2)]
    for step in range(24):
        shared = [e for part in parts for e in examples(part[step])]
        assert sorted(shared) == examples(alone[step])


def test_a_place_is_one_to_begin_from(world):
    alone = batches_of(world)
    for step in (0, 3, 4, 9, 21):
        alone[step]
        saved = json.loads(json.dumps(alone.place(step)))
        later = batches_of(world)
        later.go_to(saved, step)
        for name, array in later[step].items():
            np.testing.assert_array_equal(array, alone[step][name])
    with pytest.raises(ValueError, match="other rows than when"):
        later.go_to(Place(7, 90, Position(1, 50, None)).to_json(), 12)
    with pytest.raises(ValueError, match="place in the stream is None"):
        batches_of(world).go_to(None, 20)


@pytest.mark.slow
def test_a_killed_run_goes_on_bitwise_in_the_middle_of_a_block(world, tmp_path):
    extra = (
        "--config.data.stream=50", f"--config.data.train={world}/train.jsonl",
        f"--config.data.eval={world}/test.csv", "--config.eval.every=6 steps",
        "--config.checkpoint.every_steps=6",
    )  # fmt: skip
    whole, stopped = (worlds.arguments(world, tmp_path / name, *extra) for name in ("a", "b"))
    assert train.main(whole) == 0
    worlds.killed_at(8, stopped)
    assert train.main(stopped) == 0
    worlds.assert_same_weights(tmp_path / "b", tmp_path / "a")
    assert worlds.timeless(tmp_path / "b") == worlds.timeless(tmp_path / "a")


def test_an_iterable_dataset_is_handed_over(world, tmp_path):
    with (world / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    data = datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=3)
    own = fields(world, **{"train.steps": 2, "eval.every": "2 steps"})
    own |= {"data.train": "", "data.eval": ""}
    held = datasets.Dataset.from_list(rows[:20])
    config = f"{ROOT}/configs/text_classification.py"
    run = jaxft.train(config, tmp_path / "run", own, data={"train": data, "eval": held})
    assert run.summary["data"]["train"] == 32 and run.summary["steps"] == 2
    own.pop("data.stream")
    with pytest.raises(ValueError, match="is a streamed dataset"):
        jaxft.train(config, tmp_path / "other", own, data={"train": data})


def test_what_a_stream_excludes(world):
    for more, said in [
        (("data.eval", ""), "needs config.data.eval"),
        (("train.steps", None), "needs config.train.steps"),
        (("train.class_weights", "balanced"), "needs all rows"),
        (("data.train", "memory:train"), "was handed over in memory"),
    ]:
        with pytest.raises(ValueError, match=said):
            prepare(
                make_config(f"{ROOT}/configs/text_classification.py", fields(world) | dict([more]))
            )


def test_a_label_that_the_first_block_lacks_is_named_with_its_row(world, tmp_path):
    lines = (world / "train.jsonl").read_text().splitlines()
    late = json.dumps({"text": "some text", "label": "unheard"})
    (tmp_path / "late.jsonl").write_text("\n".join([*lines[:59], late, *lines[59:]]))
    streamed = batches_of(world, **{"data.train": str(tmp_path / "late.jsonl")})
    with pytest.raises(ValueError, match="late.jsonl, row 60"):
        streamed[4]
