"""Trials that run as one program: the loop of a run over a leading axis of trials."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxft.data.loader import iterate
from jaxft.experiment.build import Run
from jaxft.experiment.evaluation import Collected, Evaluation, evaluate, outputs, scores
from jaxft.experiment.prepared import Prepared
from jaxft.experiment.steps import evaluation
from jaxft.experiment.weights import changes_weights, weights_of
from jaxft.optim import by_path, merge, path_map
from jaxft.search.trials.batches import TrialBatches, stackable
from jaxft.search.trials.groups import Members, apart, begun
from jaxft.search.trials.memory import affordable, free_bytes, program_bytes
from jaxft.search.trials.progress import Ended, Progress, Told, on_host, own_paths
from jaxft.search.trials.worlds import Worlds
from jaxft.training.programs import Programs
from jaxft.training.step import TrainState
from jaxft.training.trials import (
    TrialAxis,
    abstract_trials,
    stack_states,
    state_of,
    stopped_trials,
    take_trials,
    trial_axis,
)

# Updates that are in flight before their losses are looked at, as of one trial alone.
_AHEAD = 8
# Trials are moved closer together when at least half have ended and the rest still has so many updates,
# each counted by the share of trials that are dropped: compiling costs as much as some ten updates.
_PAYS = 50


def run_group(
    members: Members,
    prepared: Mapping[int, Prepared],
    worlds: Worlds,
    told: Callable[[int], Told | None],
    ended: Callable[[int, Ended, float], None],
    *,
    memory: int | None,
    weights: bool,
    predictions: bool,
) -> None:
    """Run trials as one program, from their first updates to their last.

    Args:
      told: gives what hears of the evaluations of a trial.
      ended: is called with a trial's number, what is left of it and its seconds, as soon as it has ended.
      memory: bytes that a device has for them, which says how many run at once; None: what is free.
      weights, predictions: whether those of the best evaluation are kept.
    """
    numbers = members.numbers
    size = _affordable(members, prepared, worlds, memory)
    for start in range(0, len(numbers), size):
        chosen = Members(numbers[start : start + size], members.own)
        for part, begun_runs in begun(chosen, prepared, worlds):
            runs, states = zip(*begun_runs, strict=True)
            drawn = apart(runs[0], (prepared[number] for number in numbers))
            group = _group(runs, drawn, worlds, own=part.own)

            def gone(place: int, left: Ended, seconds: float, part: Members = part) -> None:
                ended(part.numbers[place], left, seconds)

            Together(
                group, states, drawn, worlds.source(runs[0], together=True),
                [told(number) for number in part.numbers], gone,
                weights=weights, predictions=predictions,
            ).run()  # fmt: skip


def _group(runs: Sequence[Run], drawn: frozenset[str], worlds: Worlds, *, own: bool) -> Group:
    several = [run.train_batches for run in runs]
    batches: Any = TrialBatches(several) if own else max(several, key=len)  # type: ignore[arg-type]
    axis = trial_axis(1 if runs[0].prepared.config.parallel.mode == "jit" else None)
    return Group(runs, batches, own, axis, worlds.programs(runs[0], drawn))


def _affordable(
    members: Members, prepared: Mapping[int, Prepared], worlds: Worlds, memory: int | None
) -> int:
    """How many of them to run at once."""
    numbers = members.numbers
    run, state = worlds.begin(prepared[numbers[0]], together=True)
    drawn = apart(run, (prepared[number] for number in numbers))
    axis = _group([run], drawn, worlds, own=False).axis
    if members.own and not stackable(run.train_batches):
        return len(numbers)

    def needs(count: int) -> int | None:
        group = _group([run] * count, drawn, worlds, own=members.own)
        head = abstract_trials(state, drawn, axis, count)
        batch = axis.abstract(group.batches.blank()[-1], own=members.own)
        return program_bytes(group.training(count), head, batch)

    budget = free_bytes() if memory is None else memory
    return affordable(len(numbers), axis.size, budget, needs)


@dataclasses.dataclass(frozen=True)
class Group:
    """Trials of one structure and one model, by their places 0..n - 1.

    Attributes:
      runs: one each; those of one world have its evaluation batches in common.
      batches: what all see, or of each its own.
      own: whether they have batches of their own.
      axis: where they lie.
      programs: of groups before, by what decides them; added to.
    """

    runs: Sequence[Run]
    batches: Any
    own: bool
    axis: TrialAxis
    programs: dict[Any, Programs]

    @property
    def first(self) -> Run:
        """Whose step, task and devices are those of all."""
        return self.runs[0]

    def training(self, count: int) -> Programs:
        """The program for so many."""
        key = ("train", self.own, count)
        if key not in self.programs:
            step = self.first.stages.at(0).step
            self.programs[key] = self.axis.compile_train(step, own_batches=self.own)
        return self.programs[key]

    def evaluating(self, count: int) -> Programs:
        """The same for evaluations over the same rows."""
        key = ("eval", count)
        if key not in self.programs:
            prepared = self.first.prepared
            architecture, task = prepared.architecture, prepared.task
            step = evaluation(
                architecture, task.predictions, prepared.config.model.dtype, self.first.parallel
            )
            self.programs[key] = self.axis.compile_eval(step)
        return self.programs[key]


class Together:
    """The loop of one group.

    Args:
      states: first states, one a trial, which may share arrays and are not donated.
      apart: paths of frozen leaves that are not the same in all states.
      source: the tree that trials begin with, placed.
      told: hear of the evaluations of each.
      ended: (place, what is left, seconds), called when a trial ends.
    """

    def __init__(
        self,
        group: Group,
        states: Sequence[TrainState],
        apart: frozenset[str],
        source: Any,
        told: Sequence[Told | None],
        ended: Callable[[int, Ended, float], None],
        *,
        weights: bool,
        predictions: bool,
    ):
        self._group, self._source, self._ended = group, source, ended
        self._trials, self._shared = stack_states(states, apart, group.axis)
        # Of each place on the axis the trial that is there, -1 where none is.
        self._places = [*range(len(states)), *[-1] * (self._trials.count - len(states))]
        self._progress = [
            Progress(run.prepared.config, run.prepared.length.steps, hears,
                     weights=weights, predictions=predictions)
            for run, hears in zip(group.runs, told, strict=True)
        ]  # fmt: skip
        self._live = set(range(len(states)))
        self._seconds = [0.0] * len(states)
        self._since = time.perf_counter()
        self._waiting: deque[tuple[int, list[int], Any]] = deque()

    def run(self) -> None:
        """From the first update to the end of the last trial."""
        group, config = self._group, self._group.first.prepared.config
        put = functools.partial(group.axis.put, own=group.own)
        batches = iterate(group.batches, 0, threads=config.data.workers, put=put)
        try:
            for step in range(1, len(group.batches) + 1):
                program = group.training(self._trials.count)
                self._trials, metrics = program(self._trials, self._shared, next(batches))
                self._waiting.append((step, list(self._places), metrics))
                due = [number for number in sorted(self._live) if self._is_due(number, step)]
                self._look(0 if due else _AHEAD)
                if due := [number for number in due if not self._progress[number].stopped]:
                    self._evaluate(due, step)
                self._end(step)
                if not self._live:
                    break
                self._close_up(len(group.batches) - step)
        finally:
            batches.close()

    def _is_due(self, number: int, step: int) -> bool:
        run = self._group.runs[number]
        return step % run.eval_every == 0 or step == run.prepared.length.steps

    def _look(self, left: int) -> None:
        """At the losses of all updates but the last ones."""
        while len(self._waiting) > left:
            step, places, metrics = self._waiting.popleft()
            values = np.stack([metrics[name] for name in ("loss", "weight", "grad_norm")], axis=1)
            for place, number in enumerate(places):
                if number in self._live and not self._progress[number].stopped:
                    self._progress[number].trained(*map(float, values[place]))

    def _end(self, step: int) -> None:
        """Those that stop here are noted, handed out and masked."""
        over = [
            number
            for number in sorted(self._live)
            if self._progress[number].stopped
            or step == self._group.runs[number].prepared.length.steps
        ]
        if not over:
            return
        self._share()
        for number in over:
            self._live.discard(number)
            self._ended(number, self._progress[number].ended(), self._seconds[number])
        places = [place for place, number in enumerate(self._places) if number in over]
        self._trials = stopped_trials(self._trials, places, self._group.axis)

    def _share(self) -> None:
        """The time since the last call is that of those that live, in equal parts."""
        now = time.perf_counter()
        for number in self._live:
            self._seconds[number] += (now - self._since) / len(self._live)
        self._since = now

    def _close_up(self, left: int) -> None:
        """Drop those that have ended, where that is worth another program."""
        live = [place for place, number in enumerate(self._places) if number in self._live]
        size, count = self._group.axis.size, self._trials.count
        fewer = -(-len(live) // size) * size
        if self._group.own or 2 * fewer > count or left * (count - fewer) < _PAYS * count:
            return
        self._look(0)
        chosen = [*live, *[-1] * (fewer - len(live))]
        self._trials = take_trials(self._trials, chosen, self._group.axis)
        self._places = [self._places[place] if place >= 0 else -1 for place in chosen]

    def _evaluate(self, due: Sequence[int], step: int) -> None:
        """Of these trials, all at once where they see the same rows."""
        runs, whole = self._group.runs, self._weights(due)
        one = runs[due[0]].shared
        # Of prefixes that seeds have drawn, what is kept is each trial's own.
        apart = self._group.own and one.prefixes.varies
        if all(runs[number].shared is one for number in due) and not apart:
            found = self._evaluated(due, step, whole)
        else:
            found = [self._evaluated_alone(number, step, whole) for number in due]
        for number, result in zip(due, found, strict=True):
            self._progress[number].evaluated(
                step, result, functools.partial(self._kept, number, whole)
            )

    def _weights(self, due: Sequence[int]) -> Any:
        """Leaves [K, ...] that differ of the models that count, see `weights_of`."""
        whole = self._trials.whole
        if not changes_weights(self._group.first.prepared.config):
            return whole
        counted = [whole] * self._trials.count
        for place, number in enumerate(self._places):
            number = number if number in due else due[0]
            state = state_of(self._trials, self._shared, self._places.index(number))
            leaves = by_path(weights_of(self._group.runs[number], state, self._source))
            counted[place] = path_map(lambda path, _: leaves[path], whole)  # noqa: B023
        stack = jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *counted)
        return self._group.axis.place(stack)

    def _evaluated(self, due: Sequence[int], step: int, whole: Any) -> list[Evaluation]:
        run = self._group.runs[due[0]]
        split, task = run.prepared.splits.eval, run.prepared.task
        batches = run.eval_batches(step)
        keep = functools.partial(task.kept, split.targets)
        found = {
            number: Collected(batches, split.targets, keep=keep, join=task.join) for number in due
        }
        program = self._group.evaluating(self._trials.count)
        call = functools.partial(program, whole, self._shared)
        put = functools.partial(self._group.axis.put, own=False)
        for arrays in outputs(call, batches, put, run.prepared.config.data.workers):
            out = {name: np.asarray(array) for name, array in arrays.items()}
            for number, of_one in found.items():
                place = self._places.index(number)
                of_one.add({name: array[place] for name, array in out.items()})
        results = []
        for number, of_one in found.items():
            own = self._group.runs[number].prepared
            predicted = of_one.whole()
            results.append(Evaluation(predicted, *scores(own.task, predicted, own.splits.eval)))
        return results

    def _evaluated_alone(self, number: int, step: int, whole: Any) -> Evaluation:
        run, config = self._group.runs[number], self._group.runs[number].prepared.config
        place = self._places.index(number)
        tree = merge(jax.tree.map(lambda x: x[place], whole), self._shared)
        here = jax.local_devices()[0]
        return evaluate(
            run.prepared.task, run.shared.eval_step, jax.device_put(tree, here),
            run.eval_batches(step), run.parallel, run.prepared.splits.eval,
            threads=config.data.workers,
        )  # fmt: skip

    def _kept(self, number: int, whole: Any) -> dict[str, np.ndarray]:
        place = self._places.index(number)
        tree = merge(jax.tree.map(lambda x: x[place], whole), self._shared)
        return on_host(tree, own_paths(self._group.runs[number]))
