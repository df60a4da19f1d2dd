"""What programs for TPUs and GPUs that are not here send: compiled ahead of time, where the compilers are."""

from __future__ import annotations

import json

import pytest

from jaxft.config import default_config, override
from jaxft.experiment.planning_process import planned
from jaxft.models import by_path
from jaxft.planning.hlo import by_kind, collectives
from jaxft.planning.topology import check_installed, environment, open_devices, parse_topology
from jaxft.training.mesh import make_parallel
from tests.training import meshes

BERT = {
    "model_type": "bert", "vocab_size": 4096, "hidden_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 1024, "max_position_embeddings": 32,
}  # fmt: skip
WIDE = {**BERT, "num_hidden_layers": 1, "hidden_size": 1024, "num_attention_heads": 16,
        "intermediate_size": 4096, "vocab_size": 30522, "max_position_embeddings": 512}  # fmt: skip
MUCH = 1.1  # times the least


def skip_without(topology: str) -> None:
    try:
        check_installed(parse_topology(topology))
    except ValueError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "h100:1x4"])
def test_gradients_are_scattered_and_what_is_frozen_is_only_gathered(
    tmp_path, monkeypatch, topology
):
    skip_without(topology)
    for name, value in environment(parse_topology(topology)).items():
        monkeypatch.setenv(name, value)
    architecture = meshes.architecture_of(tmp_path, BERT, "sequence")
    devices = open_devices(parse_topology(topology))
    parallel = make_parallel("shard", fsdp=4, devices=devices)
    state, step = meshes.program_of(architecture, parallel, below=1, dtype="bfloat16")
    batch = parallel.abstract_batch(meshes.batch_of("sequence", 0))
    text = step.traced_for((state,), batch).lower().compile().as_text()
    found = by_kind(collectives(text, {"data": 1, "fsdp": 4, "tensor": 1}))
    kernels = {p: x.size for p, x in by_path(architecture.abstract).items() if p.endswith("kernel")}
    trained = sum(n for path, n in kernels.items() if architecture.depths[path] > 1 and n >= 2**16)
    frozen = sum(n for path, n in kernels.items() if architecture.depths[path] == 1)
    share = 3 / 4
    # A TPU may do a product piece by piece and send its parts on.
    scattered = found.get("reduce-scatter", 0) + found.get("collective-permute", 0)
    assert share * 4 * trained <= scattered < MUCH * share * 4 * trained
    # In bf16, forward and backward, the pooler in float32; and tokens of tables that are looked up.
    gathered = share * 2 * (frozen + 2 * trained)
    assert share * 2 * (frozen + trained) < found["all-gather"] < MUCH * gathered
    assert found.get("all-reduce", 0) < 0.05 * scattered
    tokens = meshes.ROWS * meshes.LENGTH / 4 * BERT["hidden_size"] * 4
    assert found.get("all-to-all", 0) <= tokens


@pytest.mark.slow
@pytest.mark.parametrize(("topology", "fsdp"), [("v5e:2x4", 8), ("v5e:16x16", 64)])
def test_a_block_is_within_a_tenth_of_the_least_from_8_to_256_chips(tmp_path, topology, fsdp):
    skip_without(topology)
    (tmp_path / "config.json").write_text(json.dumps(WIDE))
    config = override(
        default_config(),
        {"task": "text_classification", "model.path": str(tmp_path), "model.dtype": "bfloat16",
         "parallel.mode": "shard", "parallel.fsdp": fsdp,
         "train.batch_size": 8 * parse_topology(topology).devices},
    )  # fmt: skip
    plan = planned(config, topology, length=512)
    assert plan.over_least is not None and plan.over_least < MUCH
    # Whole gradients are summed of what fsdp does not cut alone, and parts of what it does over data.
    summed = [one["bytes"] for one in plan.traffic if one["kind"] == "all-reduce"]
    assert sum(summed) < 0.1 * sum(plan.least.values())
