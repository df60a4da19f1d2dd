"""Loss and gradient of the first batch of a run, however it is packed, cut or placed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optax

from jaxft.api import make_config
from jaxft.experiment.build import begin, read_params, share
from jaxft.experiment.prepared import prepare
from jaxft.experiment.steps import devices
from jaxft.models import by_path


def of_first_update(
    config: str | Path, overrides: dict[str, Any], **changes: Any
) -> tuple[float, dict[str, np.ndarray]]:
    """Of a run with these settings: the loss of its first batch, and by path its gradient, which is the
    momentum of SGD after an update.

    changes: fields, with '__' for '.'.
    """
    plain = {
        "optim.optimizer": "sgd", "optim.clip": None, "optim.weight_decay": 0.0,
        "train.steps": 1, "train.compile_cache": "", "parallel.mode": "jit", "data.max_shapes": 1,
    }  # fmt: skip
    given = {name.replace("__", "."): value for name, value in changes.items()}
    prepared = prepare(make_config(config, {**overrides, **plain, **given}))
    parallel = devices(prepared.config)
    params, report = read_params(prepared, parallel)
    shared = share(prepared, parallel, report, cache=None)
    run, state = begin(prepared, shared, params)
    batch = parallel.put(run.train_batches[0])
    state, metrics = run.stages.at(0).program(state, batch)
    loss = float(parallel.unreplicate(metrics)["loss"])
    momentum = optax.tree_utils.tree_get(parallel.unreplicate(state.opt_state), "trace")
    return loss, {path: np.asarray(x) for path, x in by_path(momentum).items()}


def assert_same(found: Any, expected: Any, rtol: float = 2e-4) -> None:
    """Equal losses and gradients, each to rtol of the largest element."""
    assert abs(found[0] - expected[0]) < rtol * abs(expected[0])
    assert found[1].keys() == expected[1].keys()
    largest = max(np.abs(x).max() for x in expected[1].values())
    assert largest > 1e-3
    for path, gradient in expected[1].items():
        allowed = rtol * max(np.abs(gradient).max(), 1e-2 * largest)
        assert np.abs(found[1][path] - gradient).max() <= allowed, path
