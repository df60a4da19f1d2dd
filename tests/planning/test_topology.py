"""Names of machines, and what is said of those that there are not."""

from __future__ import annotations

import pytest

from jaxft.planning import topology
from jaxft.planning.gpu_target import TARGETS, target_text
from jaxft.planning.hardware import CHIPS
from jaxft.planning.survey import Candidate, batches, meshes, promising
from jaxft.planning.topology import check_installed, environment, parse_topology


@pytest.mark.parametrize(
    ("name", "devices", "hosted", "platform"),
    [
        ("v5e:4x4", 16, 4, "tpu"), ("v5p:4x4x4", 64, 4, "tpu"), ("V6E:16x16", 256, 4, "tpu"),
        ("v5e:1x1", 1, 1, "tpu"), ("h100:8x8", 64, 8, "gpu"), ("a100:4", 4, 4, "gpu"),
        ("cpu", 1, 1, "cpu"), ("cpu:8", 8, 8, "cpu"),
    ],
)  # fmt: skip
def test_names(name, devices, hosted, platform):
    found = parse_topology(name)
    assert (found.devices, found.hosted, found.platform) == (devices, hosted, platform)
    assert ("ALLOW_MULTIPLE_LIBTPU_LOAD" in environment(found)) == (platform == "tpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5:4x4", "there is no 'v5' .did you mean 'v5"),
        ("h10:8", "did you mean 'h100'"),
        ("v5e", "has no size; write as in v5e:4x4"),
        ("v5e:4y4", "has no size"),
        ("v5e:16", "has 1 sizes, not 2: v5e:4x4"),
        ("v5p:4x4", "has 2 sizes, not 3: v5p:4x4x4"),
        ("h100:2x16", "16 GPUs in a host, which has at most 8: h100:4x8"),
        ("v5e:100x100", "10000 devices; at most 4096"),
        ("", "there is no ''"),
    ],
)
def test_mistakes_name_what_is_allowed(name, message):
    with pytest.raises(ValueError, match=message):
        parse_topology(name)


@pytest.mark.parametrize(
    ("name", "what"), [("v5e:4x4", "jaxft.plan."), ("h100:8", "jax-cuda12-plugin")]
)
def test_what_compiles_is_missing(monkeypatch, name, what):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ValueError, match=f"not installed: pip install.*{what}"):
        check_installed(parse_topology(name))
    check_installed(parse_topology("cpu"))


def test_every_gpu_of_the_table_has_a_target():
    gpus = {name for name, chip in CHIPS.items() if chip.platform == "gpu"}
    assert gpus == set(TARGETS)
    assert "core_count: 132" in target_text(TARGETS["h100"])


def test_what_a_search_looks_at():
    found = set(meshes(8, 4, tensor=True))
    assert (8, 1, 1) in found and (1, 8, 1) in found and (1, 2, 4) in found
    assert all(d * f * t == 8 and t <= 4 for d, f, t in found) and len(found) == 4 + 3 + 2
    assert {t for _, _, t in meshes(8, 4, tensor=False)} == {1}
    assert list(batches(8, 8)) == [
        (1, 8, 1),
        (2, 16, 1),
        (2, 16, 2),
        (4, 32, 1),
        (4, 32, 2),
        (4, 32, 4),
    ]


def candidate(fsdp: int, rate: float, *, needed: float = 1.0, larger: int = 1) -> Candidate:
    fields = {"parallel.data": 8 // fsdp, "parallel.fsdp": fsdp, "parallel.tensor": 1}
    return Candidate(fields, needed, 2.0, 1.0, rate, larger)


def test_the_best_of_each_mesh_is_compiled_first():
    a, b, c = candidate(8, 9.0), candidate(8, 8.0), candidate(4, 7.0)
    assert promising([a, b, c]) == [a, c, b]
    large, small = candidate(8, 9.0, needed=9.0), candidate(4, 7.0, needed=3.0)
    assert promising([large, small]) == [small, large]  # neither fits
    assert candidate(8, 10.4, larger=2).rank < 10.0 < candidate(8, 10.6, larger=2).rank
