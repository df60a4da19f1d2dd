"""What may change between two starts of one run directory, and what may not.

A run is a pure function of its config and its sources, so almost nothing. Exceptions are fields that
cannot change the trained weights, those that change no more than how sums are rounded (the devices), and a
longer run where the schedule does not depend on the length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxft import config as config_lib
from jaxft.base.nested import flatten
from jaxft.config import ConfigDict, duration_steps
from jaxft.experiment.length import Length, run_length

# Which rows are tested, and how things are logged, kept and prepared. Beside these, `parallel.*`: a batch
# has the same rows on any devices, and dropout the same masks.
FREE = (
    "data.test", "data.workers", "data.cache", "model.stack", "train.log_every",
    "train.compile_cache",
    "checkpoint.keep", "checkpoint.every_steps", "checkpoint.every_minutes",
    "checkpoint.keep_every_steps", "checkpoint.keep_every_hours",
)  # fmt: skip
# What becomes of updates that are not finite: of the updates so far it has changed nothing.
_FORWARD = ("train.on_nonfinite", "train.max_nonfinite")
_LENGTH = ("train.epochs", "train.steps")
_DURATIONS = ("optim.warmup", "optim.unfreeze_every", "optim.average_from")


@dataclasses.dataclass(frozen=True)
class Changes:
    """Accepted differences between the config of a directory and the one given now.

    Attributes:
      lines: 'config.FIELD: old -> new'.
      reopens: a finished run has something to do again: train on, or test.
    """

    lines: tuple[str, ...] = ()
    reopens: bool = False


def accepted(
    old: ConfigDict, new: ConfigDict, *, entries: int, stopped_early: bool, where: str
) -> Changes:
    """The differences, where the run can go on with them.

    Args:
      entries: what an epoch of the run counts (rows, windows or pairs), which give its length in updates.
      stopped_early: whether it has finished by running out of patience.
      where: the run directory, for the message.

    Raises:
      ValueError: it cannot; lists every field, or says why the run cannot be longer.
    """
    before, after = (flatten(config_lib.to_json(c)) for c in (old, new))
    for config in (before, after):
        _forget_old_defaults(config)
    changed = [field for field in before if before[field] != after[field]]
    lines = {f: f"config.{f}: {before[f]!r} -> {after[f]!r}" for f in changed}
    other = [f for f in changed if not _is_free(f)]
    longer = bool(set(other) & set(_LENGTH)) and set(other) <= {*_LENGTH, *_DURATIONS}
    if longer:
        lengths = (run_length(old, entries), run_length(new, entries))
        _check_longer(before, after, lengths, stopped_early, where)
    elif other:
        raise ValueError(
            f"{where} holds a run with another config; give a new --workdir, or these values:\n"
            + "\n".join(f"  {lines[field]}" for field in other)
        )
    return Changes(tuple(lines.values()), reopens=longer or "data.test" in changed)


def _forget_old_defaults(config: dict[str, Any]) -> None:
    """What earlier versions wrote out where today's default is None, to the same effect."""
    if config["optim.b2"] == 0.999 and config["optim.optimizer"] != "lion":
        config["optim.b2"] = None
    if config["optim.unfreeze_every"] == "1 epochs" and config["optim.unfreeze"] == "none":
        config["optim.unfreeze_every"] = None


def _is_free(field: str) -> bool:
    return field in (*FREE, *_FORWARD) or field.startswith(("log.", "parallel."))


def _check_longer(
    old: Mapping[str, Any], new: Mapping[str, Any], lengths: tuple[Length, Length],
    stopped_early: bool, where: str,
) -> None:  # fmt: skip
    """Raise unless every update so far is also the beginning of the longer run."""
    was, now = (length.steps for length in lengths)
    start = f"{where} holds a run of {was} steps, which cannot become one of {now}"
    fresh = (
        "; for more training give a new --workdir, with config.model.path="
        f"{where}/best to begin from its best weights"
    )
    if now < was:
        raise ValueError(f"{start}: a run can only be made longer{fresh}")
    if stopped_early:
        raise ValueError(f"{start}: it stopped early, and would stop there again{fresh}")
    schedules = {old["optim.schedule"]}
    schedules |= {dict(s).get("schedule", old["optim.schedule"]) for _, s in old["optim.groups"]}
    for kind in schedules - {"constant"}:
        raise ValueError(
            f"{start}: its rates follow config.optim.schedule={kind!r} to the end of the run, so "
            f"those of a longer run differ from the first step on{fresh}"
        )
    for field in _used(old):
        if old[field] is None:
            raise ValueError(f"{start}: config.{field}=None follows the length of the run{fresh}")
        steps = [
            duration_steps(field, c[field], steps_per_epoch=length.epoch, total_steps=length.steps)
            for c, length in zip((old, new), lengths, strict=True)
        ]
        if steps[0] != steps[1]:
            raise ValueError(
                f"{start}: config.{field}={new[field]!r} would be {steps[1]} steps in place of "
                f"{steps[0]}; give --config.{field}='{steps[0]} steps'"
            )


def _used(config: Mapping[str, Any]) -> list[str]:
    """The durations that decide something in a run with this config."""
    used = ["optim.warmup"]
    if config["optim.unfreeze"] not in ("none", "explicit"):
        used.append("optim.unfreeze_every")
    if config["optim.average"] == "swa":
        used.append("optim.average_from")
    return used
