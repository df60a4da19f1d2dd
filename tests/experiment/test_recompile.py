"""One program serves every seed, rate, decay and length of a run: a second run compiles nothing."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxft import train
from tests import worlds


@pytest.fixture
def misses(tmp_path):
    """Programs that were compiled and not found in the persistent cache, which begins empty."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
    compilation_cache.reset_cache()
    found: list[str] = []

    def note(event: str, **_: object) -> None:
        if event == "/jax/compilation_cache/cache_misses":
            found.append(event)

    jax.monitoring.register_event_listener(note)
    yield found
    jax.monitoring.unregister_event_listener(note)
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def start(world: Path, workdir: Path, *extra: str) -> None:
    """A run as in a new process: nothing that was compiled before is in memory."""
    jax.clear_caches()
    argv = worlds.arguments(
        world, workdir, "--config.train.steps=9", "--config.data.max_shapes=2",
        f"--config.train.compile_cache={workdir.parent}/cache", *extra,
    )  # fmt: skip
    assert train.main(argv) == 0


# What each asks for beside the defaults: every one adds numbers to the optimizer's.
KINDS = {
    "groups, swa": (
        "--config.optim.groups=(('classifier/.*', {'lr': 1e-3, 'weight_decay': 0.1}),)",
        "--config.optim.average=swa",
    ),
    "l2sp, stages, wise_ft": (
        "--config.optim.decay_towards=pretrained", "--config.optim.unfreeze=lp_ft",
        "--config.optim.unfreeze_every=3 steps", "--config.optim.wise_ft=0.5",
    ),
    "schedule-free": ("--config.optim.schedule_free=true", "--config.optim.schedule=constant"),
}  # fmt: skip
OTHER = (
    "--config.train.seed=5", "--config.optim.lr=3e-4", "--config.optim.weight_decay=0.05",
    "--config.optim.clip=0.3", "--config.optim.warmup=2 steps", "--config.train.steps=11",
    "--config.optim.b1=0.8", "--config.optim.b2=0.98",
)  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    [k if k == "groups, swa" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS],
)
def test_another_seed_rate_and_length_compile_nothing(world, tmp_path, misses, kind):
    start(world, tmp_path / "first", *KINDS[kind])
    misses.clear()
    start(world, tmp_path / "second", *KINDS[kind], *OTHER)
    assert misses == []
    start(world, tmp_path / "third", *KINDS[kind], "--config.optim.optimizer=sgd")
    assert (
        misses or kind == "schedule-free"
    )  # another optimizer is another program: misses are seen
