"""A plan of this CPU in this process: what it says is what the compiler says, and what a formula does."""

from __future__ import annotations

import dataclasses
import json

import pytest

from jaxft.config import default_config, override
from jaxft.experiment.planned import chip_of, plan_run
from jaxft.experiment.planned_config import with_plan
from jaxft.experiment.planned_survey import survey
from jaxft.planning import page
from jaxft.planning.advice import advice
from jaxft.planning.plan import from_json
from jaxft.planning.topology import parse_topology

LLAMA = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96,
    "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip
ROWS, LENGTH = 16, 32


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Of a decoder of which only config.json is there, with its last two blocks trained."""
    folder = tmp_path_factory.mktemp("llama")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return override(
        default_config(),
        {"task": "causal_lm", "eval.metric": "loss", "model.path": str(folder), "parallel.mode": "shard",
         "train.batch_size": ROWS, "optim.freeze_below": 1, "parallel.fsdp": 4},
    )  # fmt: skip


@pytest.fixture(scope="module")
def plan(config):
    """Over eight devices of this process, compiled."""
    return plan_run(config, parse_topology("cpu:8"), length=LENGTH)


def test_memory_is_the_compilers(plan):
    own, said = plan.memory, plan.compiler
    arguments = sum(own[name] for name in ("trainable", "frozen", "slots", "statistics", "others"))
    assert arguments == pytest.approx(said["arguments"], rel=0.01)
    needed = said["arguments"] + said["results"] - said["donated"] + said["temporaries"]
    assert own["needed"] == needed == arguments + own["activations"] + own["temporaries"]
    assert sum(row[1] for row in plan.held) == own["trainable"] and len(plan.held) == 5
    # AdamW has two slots for each trained parameter, and none for what is frozen.
    assert own["slots"] == pytest.approx(2 * own["trainable"], rel=0.01)


def test_flops_are_those_of_the_formula(plan):
    d, f, v, tokens = 32, 96, 64, ROWS * LENGTH
    # q and o, k and v, the feed-forward.
    kernels = 2 * tokens * (d * d * 2 + d * 16 * 2 + 3 * d * f)
    looks = 2 * 2 * tokens * LENGTH * d  # scores, and values; masked ones are computed, too
    head = 3 * 2 * tokens * d * v
    # One frozen block, forward alone; of two all of it, as their first norms train, too.
    assert plan.flops == (1 + 2 * 3) * (kernels + looks) + head


def test_traffic_is_along_the_axes_of_the_mesh(plan):
    assert plan.mesh == {"data": 2, "fsdp": 4, "context": 1, "tensor": 1}
    assert {axis for one in plan.traffic for axis in one["axes"]} <= {"data", "fsdp"}
    assert plan.over_least >= 0.9
    assert plan.batch == {
        "examples": ROWS, "rows": ROWS, "length": LENGTH, "tokens": ROWS * LENGTH, "accumulate": 1
    }  # fmt: skip


def test_a_plan_survives_its_file_and_is_told(plan):
    again = from_json(json.loads(json.dumps(plan.to_json())), "plan.json")
    assert again == plan
    told = page.render(plan)
    assert "<svg" in told and "fits: " in told and "optimizer slots" in told


def test_a_run_takes_the_plan(plan, config, tmp_path):
    path = tmp_path / "plan.json"
    settled = {**plan.settled, "model.dtype": "bfloat16", "parallel.fsdp": 2, "parallel.data": 4}
    path.write_text(json.dumps(plan.to_json() | {"settled": settled}))
    taken = with_plan(config, str(path))
    assert taken.model.dtype == "bfloat16" and (taken.parallel.data, taken.parallel.fsdp) == (4, 2)
    for change, message in (
        ({"train.batch_size": 7}, "config.train.batch_size=7, but --plan=.* has 16"),
        ({"optim.freeze_below": 2}, "was made with config.optim.freeze_below=1, not 2"),
    ):
        with pytest.raises(ValueError, match=message):
            with_plan(override(config, change), str(path))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({**LLAMA, "hidden_size": 64, "new_key": 3}))
    with pytest.raises(ValueError, match="config.json has hidden_size=32; .* has 64"):
        with_plan(override(config, {"model.path": str(other)}), str(path))
    with pytest.raises(ValueError, match="there is no such file"):
        with_plan(config, str(tmp_path / "none.json"))
    path.write_text("{}")
    with pytest.raises(ValueError, match="no plan.json of this version"):
        with_plan(config, str(path))


def test_what_cannot_be_planned(config):
    one = parse_topology("cpu:8")
    with pytest.raises(ValueError, match="--length=65 is above the 64 positions"):
        plan_run(config, one, length=65)
    with pytest.raises(ValueError, match="data.train is empty: give the data, or --length"):
        plan_run(config, one)
    with pytest.raises(ValueError, match="can be planned with its data only"):
        plan_run(override(config, {"task": "preference"}), one, length=8)
    with pytest.raises(ValueError, match="do not multiply to the 8 devices"):
        plan_run(override(config, {"parallel.fsdp": 3}), one, length=8)


def test_fsdp_over_all_of_a_slice_is_told_where_whole_gradients_are_summed(plan):
    summed = {"kind": "all-reduce", "axes": ["fsdp"], "group": 64, "count": 4, "bytes": 2.0}
    roomy = {**plan.memory, "available": 1e12}
    whole = dataclasses.replace(
        plan, topology="v5e:8x8", devices=64, hosted=4, mesh={"data": 1, "fsdp": 64}, traffic=[summed],
        least={"all-gather": 1.0}, memory=roomy,
    )  # fmt: skip
    said, to_do = advice(whole)
    assert "2 times the least" in said and "--config.parallel.fsdp=32 (data 2)" in to_do
    of_half = dataclasses.replace(whole, mesh={"data": 2, "fsdp": 32})
    assert len(advice(of_half)) == len(advice(dataclasses.replace(whole, topology="h100:8x8"))) == 1


def test_one_that_does_not_fit_says_what_to_change(plan):
    own = {**plan.memory, "activations": 9 * plan.memory["needed"]}
    full = dataclasses.replace(plan, memory={**own, "needed": 10 * own["needed"], "available": 1.0})
    lines = advice(full)
    assert not full.fits and any("--config.train.accumulate=2" in line for line in lines)
    assert any("--config.model.dtype=bfloat16" in line for line in lines)
    assert any("none of these alone saves" in line for line in lines)
    settled = dataclasses.replace(plan, memory={**own, "available": 1e12}, least={}, traffic=[])
    assert settled.fits and advice(settled) == []


@pytest.mark.slow
def test_a_search_looks_at_every_mesh(config):
    """By arithmetic, over eight devices of this machine; four traces."""
    here = parse_topology("cpu:8")
    found = survey(config, here, chip_of(here), length=LENGTH, examples=0)
    sizes = [
        tuple(one.fields[f"parallel.{axis}"] for axis in ("data", "fsdp", "tensor"))
        for one in found
    ]
    assert {d * f * t for d, f, t in sizes} == {8} and {t for _, _, t in sizes} == {1, 2, 4, 8}
    assert all(one.fits for one in found)
    ranks = [one.rank for one in found]
    assert ranks == sorted(ranks, reverse=True)
    by_sort = {
        (one.fields["model.remat"], one.fields["train.accumulate"]): one.needed
        for one in found[::-1]
    }
    assert len(by_sort) == 8
    # More devices that cut the state, less of it each; what is recomputed is not kept.
    same = {
        "train.batch_size": ROWS,
        "train.accumulate": 1,
        "model.dtype": "float32",
        "parallel.tensor": 1,
    }
    here = [one for one in found if all(one.fields[f] == v for f, v in same.items())]
    plain = {one.fields["parallel.fsdp"]: one for one in here if not one.fields["model.remat"]}
    again = {one.fields["parallel.fsdp"]: one for one in here if one.fields["model.remat"]}
    assert again[1].seconds >= plain[1].seconds and again[1].needed < plain[1].needed
