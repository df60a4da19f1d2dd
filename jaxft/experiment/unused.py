"""Fields of a config that have no meaning for its task or its model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxft.base.nested import flatten
from jaxft.config import ConfigDict, default_config
from jaxft.data.inputs import KINDS
from jaxft.models import Architecture, draws
from jaxft.tasks.contract import LOSS_OPTIONS, Configured, Shaped, Task, Writes
from jaxft.tasks.table import TASKS

# Of tasks whose models give texts.
_WRITING = {f"eval.{name}" for name in ("generate", "beams", "length_penalty", "early_stopping")}


def check_unused(config: ConfigDict, task: Task[Any]) -> None:
    """ValueError for a field that is set and has no meaning for the task: it would change nothing."""
    given, defaults = flatten(config), flatten(default_config())
    own = {*KINDS[task.inputs].settings, *_settings_of(task)}
    others = {name for kind in KINDS.values() for name in kind.settings}
    others |= {name for other in TASKS.values() for name in _settings_of(other)}
    others -= own
    others |= set() if isinstance(task, Writes) else _WRITING
    others |= set() if isinstance(task, Shaped) else set(LOSS_OPTIONS)
    for field in (*task.unused, *sorted(others)):
        if given[field] != defaults[field]:
            raise ValueError(
                f"config.{field}={given[field]!r} has no meaning for config.task={config.task!r}; "
                f"leave it at {defaults[field]!r}"
            )


def check_passes_differ(
    config: ConfigDict, architecture: Architecture, batch: Mapping[str, Any], frozen_blocks: int
) -> None:
    """ValueError where R-Drop would compare two passes that are the same.

    batch: any of training. frozen_blocks: depths that no stage trains, see `Pass`.
    """
    if config.train.r_drop and not draws(architecture, batch, frozen_blocks):
        raise ValueError(
            f"config.train.r_drop={config.train.r_drop} compares two passes with different dropout or "
            "stochastic depth, and nothing that is trained here has any; set config.model.dropout or "
            "config.model.stochastic_depth, such as 0.1, or leave it at 0.0"
        )


def _settings_of(task: Task[Any]) -> tuple[str, ...]:
    return tuple(task.settings) if isinstance(task, Configured) else ()
