"""Which fields of a config a plan settles, on which it rests, and a run that is trained by a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxft.base.json_file import read_object
from jaxft.base.nested import as_tuples, flatten
from jaxft.config import ConfigDict, override
from jaxft.config_fields import BY_NAME, FIELDS
from jaxft.models import hf
from jaxft.planning.plan import Plan, from_json

# What a plan settles, and `train --plan` takes from it.
SETTLED = (
    "parallel.mode", "parallel.data", "parallel.fsdp", "parallel.context", "parallel.tensor",
    "train.batch_size", "train.accumulate", "model.dtype", "model.remat",
)  # fmt: skip
# What it rests on, beside every field that is compiled into the step.
_ASSUMED = (
    "task", "optim.freeze_below", "optim.frozen", "optim.unfreeze", "data.max_length", "data.pack",
)  # fmt: skip


def assumed(config: ConfigDict, directory: str) -> dict[str, Any]:
    """Fields on which a plan rests, as plain JSON; with the sizes in the model's config.json."""
    values, compiled = flatten(config), [f.name for f in FIELDS if f.compiled]
    names = dict.fromkeys((*_ASSUMED, *compiled))
    raw = read_object(Path(directory, "config.json")) or {}
    sizes = {n: v for n, v in raw.items() if type(v) is int and not n.endswith("token_id")}
    plain = {n: _plain(values[n]) for n in names if n not in SETTLED}
    return {**plain, "config.json": {**sizes, "model_type": raw.get("model_type")}}


def with_plan(config: ConfigDict, path: str) -> ConfigDict:
    """The config of a run, with mesh, batch, compute type and rematerialisation of a plan.

    Args:
      path: of a plan.json; '': there is none, and the config stays.

    Raises:
      ValueError: no plan; a config that says otherwise, or that is not what was planned.
    """
    if not path:
        return config
    raw = read_object(path)
    if raw is None:
        raise ValueError(f"--plan={path}: there is no such file; `jaxft plan` writes a plan.json")
    plan = from_json(raw, f"--plan={path}")
    values = flatten(config)
    for field, value in plan.settled.items():
        mine = _plain(values[field])
        if mine not in (value, plan.given[field], _plain(BY_NAME[field].default)):
            raise ValueError(
                f"config.{field}={mine!r}, but --plan={path} has {value!r}; leave the field out, or plan "
                "again with it"
            )
    _check_assumed(config, plan, path)
    return override(config, {field: as_tuples(value) for field, value in plan.settled.items()})


def _check_assumed(config: ConfigDict, plan: Plan, path: str) -> None:
    mine = assumed(config, hf.resolve(config.model.path))
    sizes = mine.pop("config.json")
    for name, value in plan.assumed["config.json"].items():
        if sizes.get(name, value) != value:
            raise ValueError(
                f"--plan={path} is of a model whose config.json has {name}={value!r}; that of "
                f"config.model.path={config.model.path!r} has {sizes[name]!r}: plan again"
            )
    for field, value in plan.assumed.items():
        if field in mine and mine[field] != value:
            raise ValueError(
                f"--plan={path} was made with config.{field}={value!r}, not {mine[field]!r}: plan again, or "
                "leave the field as it was"
            )


def _plain(value: Any) -> Any:
    return [_plain(x) for x in value] if isinstance(value, (tuple, list)) else value
