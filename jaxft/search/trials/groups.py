"""Which trials run as one program."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import jax

from jaxft.experiment.build import Run
from jaxft.experiment.decide import frozen_blocks
from jaxft.experiment.prepared import Prepared
from jaxft.experiment.steps import structure
from jaxft.search.trials.batches import are_same, stackable
from jaxft.search.trials.worlds import Worlds, key_of
from jaxft.tasks.contract import HeadFitting, Writes
from jaxft.training.step import TrainState

MODES = ("auto", "on", "off")


@dataclasses.dataclass(frozen=True)
class Members:
    """Trials of one group, by their numbers. own: each has batches of its own."""

    numbers: tuple[int, ...]
    own: bool = False


def grouped(prepared: Mapping[int, Prepared], worlds: Worlds, vmapped: str) -> list[Members]:
    """Trials that could run as one program together, the others by themselves; in the order of the first.

    Those that see the same batches are a group; of the rest, those over one model, which can have batches of
    their own.

    Args:
      vmapped: 'on': all that can; 'auto': those for which it pays, see `_pays`; 'off': none.
    """
    found: dict[object, list[int]] = {}
    for number, one in prepared.items():
        key = (number,) if vmapped == "off" or not can_join(one) else _sight(one, worlds)
        found.setdefault(key, []).append(number)
    groups, single = list[Members](), dict[object, list[int]]()
    for numbers in found.values():
        first = prepared[numbers[0]]
        pays = vmapped == "on" or _pays(first, shared=len(numbers) > 1)
        if len(numbers) > 1 and pays:
            groups.append(Members(tuple(numbers)))
        else:
            joins = (
                vmapped != "off"
                and can_join(first)
                and (vmapped == "on" or _pays(first, shared=False))
            )
            for number in numbers:
                key = (key_of(first), structure(first), first.config.train.batch_size)
                single.setdefault(key if joins else number, []).append(number)
    groups += [Members(tuple(numbers), own=len(numbers) > 1) for numbers in single.values()]
    return sorted(groups, key=lambda members: members.numbers[0])


def can_join(prepared: Prepared) -> bool:
    """Whether a trial can run as one program with others: what it needs is a step, the same from the first
    update to the last, and predictions; on one device, or on several that have a share of the trials each."""
    config, task = prepared.config, prepared.task
    p = config.parallel
    return (
        len(prepared.decisions.starts) == 1
        and not isinstance(task, HeadFitting)
        and not (isinstance(task, Writes) and config.eval.generate)
        and not config.data.stream
        and p.mode in ("auto", "jit")
        and p.fsdp == p.context == p.tensor == 1
    )


def _sight(prepared: Prepared, worlds: Worlds) -> object:
    """Equal for trials of one program that see the same batches."""
    c = prepared.config.train
    return (
        worlds.number(prepared), structure(prepared), c.seed, c.batch_size, c.accumulate,
    )  # fmt: skip


def _pays(prepared: Prepared, *, shared: bool) -> bool:
    """On a CPU what is computed once for all trials, and no more; an accelerator computes many small
    products at once in less time than one after the other."""
    if jax.default_backend() != "cpu":
        return True
    return shared and frozen_blocks(prepared.architecture, prepared.decisions.frozen) >= 0


def apart(run: Run, trials: Iterable[Prepared]) -> frozenset[str]:
    """Paths of leaves that trials, `run` among them, hold apart though they are frozen: what each one's seed
    has drawn."""
    if len({one.config.train.seed for one in trials}) == 1:
        return frozenset()
    return frozenset({*run.initialised, *run.prepared.architecture.grown})


def begun(
    members: Members, prepared: Mapping[int, Prepared], worlds: Worlds
) -> list[tuple[Members, list[tuple[Run, TrainState]]]]:
    """The runs of a group and their first states; more than one group where some of them turn out to see
    other batches than the first, as of other lengths some do."""
    runs = list[tuple[int, Run, TrainState]]()
    for number in members.numbers:
        like = runs[0][1] if runs and not members.own else None
        runs.append((number, *worlds.begin(prepared[number], together=True, like=like)))
    if members.own:
        parts = (
            [runs]
            if all(stackable(run.train_batches) for _, run, _ in runs)
            else [[r] for r in runs]
        )
    else:
        parts = []
        for one in runs:
            part = next((p for p in parts if are_same(p[0][1], one[1])), None)
            if part is None:
                parts.append([one])
            else:
                part.append(one)
    return [
        (
            Members(tuple(number for number, _, _ in part), members.own and len(part) > 1),
            [(run, state) for _, run, state in part],
        )
        for part in parts
    ]
