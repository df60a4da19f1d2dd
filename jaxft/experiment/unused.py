"""Fields of a config that have no meaning for its task."""

from __future__ import annotations

from typing import Any

from jaxft.base.nested import flatten
from jaxft.config import ConfigDict, default_config
from jaxft.data.inputs import KINDS
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


def _settings_of(task: Task[Any]) -> tuple[str, ...]:
    return tuple(task.settings) if isinstance(task, Configured) else ()
