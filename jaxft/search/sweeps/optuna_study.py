"""Optuna's part of a sweep: the values of a trial, and whether it is to be pruned.

Both are asked of a copy of the study in memory, which holds the trials that a decision may rest on and no
others. So what is decided is a pure function of (seed, number of the trial, those trials), and the same
after a kill as without one; the storage of the study has only what is settled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, Trial, TrialState

from jaxft.search.sweeps.domains import Choice, Float
from jaxft.search.sweeps.space import Setting, Space

SAMPLERS = ("tpe", "random", "grid", "cmaes")
PRUNERS = ("median", "halving", "hyperband", "wilcoxon", "none")
_NAME = "sweep"  # of the copies; Hyperband draws a trial's bracket by its study's name
_RUNG = "completed_rung_"  # under which successive halving notes what a trial had at a rung
_FACTOR = 3  # of successive halving: one of so many goes on


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a sweep searches; with the config and the space it decides every trial.

    Attributes:
      sampler, pruner: of SAMPLERS and PRUNERS.
      objectives: names of what is optimised; `directions`: 'max' or 'min' of each.
      seed: of the sampler.
      at_once: trials that are asked for together, without knowing of each other's results.
      evaluations: of the longest trial; what Hyperband makes its brackets by.
    """

    sampler: str
    pruner: str
    objectives: tuple[str, ...]
    directions: tuple[str, ...]
    seed: int
    at_once: int
    evaluations: int


@dataclasses.dataclass(frozen=True)
class Proposal:
    """The values of one trial.

    Attributes:
      changes: of the config, by field.
      params: by `Setting.name`, as the study has them; `distributions`: of these.
      notes: what the sampler wants to find with the trial later.
    """

    changes: dict[str, Any]
    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]
    notes: dict[str, Any]


def propose(
    trials: Sequence[FrozenTrial], number: int, plan: Plan, space: Space
) -> Proposal | None:
    """The values of trial `number`; None: a grid has no such point.

    Args:
      trials: those with lower numbers, in order.
    """
    seed = int(np.random.SeedSequence([plan.seed, number]).generate_state(1)[0])
    with _quiet():
        study = _copy(trials, plan, sampler=_sampler(plan.sampler, seed))
        if plan.sampler == "grid":
            points = space.grid()
            if number >= len(points):
                return None
            labels = {one.name: one for one in space.searched}
            study.enqueue_trial({n: _label(labels[n], x) for n, x in points[number].items()})
        trial = study.ask()
        changes = space.changes(lambda one: _suggest(trial, one))
    frozen = study.get_trials(deepcopy=False)[-1]
    return Proposal(changes, frozen.params, frozen.distributions, frozen.system_attrs)


class Pruning:
    """Whether trials that run together are to end, as they report.

    Args:
      trials: of the study, in order; those that have not ended count for nothing but their rungs here.
      numbers: of the trials that run.
    """

    def __init__(self, trials: Sequence[FrozenTrial], numbers: Sequence[int], plan: Plan):
        self.prunes = plan.pruner != "none"
        if self.prunes:
            with _quiet():
                self._study = _copy(trials[: max(numbers) + 1], plan, pruner=_pruner(plan))
            self._trials = {number: _running(self._study, number) for number in numbers}

    def report(self, number: int, evaluation: int, value: float) -> bool:
        """Of a trial its objective after its `evaluation`-th (from 1); True: it ends here."""
        if not self.prunes:
            return False
        with _quiet():
            self._trials[number].report(value, evaluation)
            return bool(self._trials[number].should_prune())

    def notes(self, number: int) -> dict[str, Any]:
        """What pruners want to find with the trial later."""
        return self._study.get_trials(deepcopy=False)[number].system_attrs if self.prunes else {}


def front(trials: Sequence[FrozenTrial], plan: Plan) -> list[int]:
    """Numbers of the best trials: one, or of several objectives the Pareto front, by the first of them."""
    done = [one for one in trials if one.state == TrialState.COMPLETE]
    if not done:
        return []
    with _quiet():
        study = _copy(trials, plan)
        best = [study.best_trial] if len(plan.objectives) == 1 else study.best_trials
    sign = -1 if plan.directions[0] == "max" else 1
    return [one.number for one in sorted(best, key=lambda t: (sign * t.values[0], t.number))]


def importances(
    trials: Sequence[FrozenTrial], plan: Plan, names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Of the first objective, by method: fANOVA (Hutter et al. 2014) and PED-ANOVA (Watanabe et al. 2023).

    Parameters that only some trials have are left out. {}: there are too few trials to say anything.
    """
    from optuna.importance import (
        FanovaImportanceEvaluator,
        PedAnovaImportanceEvaluator,
        get_param_importances,
    )

    done = [one for one in trials if one.state == TrialState.COMPLETE]
    shared = [n for n in names if done and all(n in one.params for one in done)]
    if len(shared) < 2 or len(done) < 4:
        return {}
    found = {}
    evaluators = {
        "fANOVA": FanovaImportanceEvaluator(seed=0),
        "PED-ANOVA": PedAnovaImportanceEvaluator(),
    }
    for method, evaluator in evaluators.items():
        # Both raise where all trials came out alike, or all values are the same.
        with _quiet(), contextlib.suppress(RuntimeError, ValueError):
            study = _copy(done, plan)
            found[method] = get_param_importances(
                study, evaluator=evaluator, params=shared, target=lambda t: t.values[0]
            )
    return found


def study_direction(direction: str) -> optuna.study.StudyDirection:
    """Optuna's form of 'max' and 'min'."""
    kinds = optuna.study.StudyDirection
    return kinds.MAXIMIZE if direction == "max" else kinds.MINIMIZE


def distribution(one: Setting) -> BaseDistribution:
    """Optuna's form of a domain."""
    what = one.what
    if isinstance(what, Choice):
        return CategoricalDistribution(what.labels())
    if isinstance(what, Float):
        return FloatDistribution(what.low, what.high, log=what.log, step=what.step)
    return IntDistribution(what.low, what.high, log=what.log, step=what.step)


def _suggest(trial: Trial, one: Setting) -> Any:
    what = one.what
    if isinstance(what, Choice):
        label = trial.suggest_categorical(one.name, what.labels())
        return what.values[CategoricalDistribution(what.labels()).to_internal_repr(label)]  # type: ignore[call-overload]
    if isinstance(what, Float):
        return trial.suggest_float(one.name, what.low, what.high, log=what.log, step=what.step)
    return trial.suggest_int(one.name, what.low, what.high, log=what.log, step=what.step)


def _label(one: Setting, value: Any) -> Any:
    what = one.what
    return what.labels()[what.values.index(value)] if isinstance(what, Choice) else value


def _copy(
    trials: Sequence[FrozenTrial],
    plan: Plan,
    *,
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
) -> optuna.Study:
    """A study in memory with these trials, those that have not ended as they were asked for."""
    study = optuna.create_study(
        storage=optuna.storages.InMemoryStorage(),
        study_name=_NAME,
        directions=[study_direction(direction) for direction in plan.directions],
        sampler=sampler or optuna.samplers.RandomSampler(seed=0),
        pruner=pruner or optuna.pruners.NopPruner(),
    )
    for one in trials:
        study.add_trial(one if one.state.is_finished() else _as_asked(one))
    return study


def _as_asked(one: FrozenTrial) -> FrozenTrial:
    """Without what it has come to: a trial that was killed as it was told has a part of that."""
    notes = {key: x for key, x in one.system_attrs.items() if not key.startswith(_RUNG)}
    return FrozenTrial(
        number=one.number, state=TrialState.RUNNING, value=None,
        datetime_start=one.datetime_start or datetime.datetime.now(), datetime_complete=None,
        params=one.params, distributions=one.distributions, user_attrs=one.user_attrs,
        system_attrs=notes, intermediate_values={}, trial_id=one.number,
    )  # fmt: skip


def _running(study: optuna.Study, number: int) -> Trial:
    return Trial(study, number)  # in memory a trial's id is its number


def _sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """One for one trial, so that nothing is remembered from trial to trial."""
    if name == "tpe":
        # Those that run count as bad, so that trials asked for together lie apart.
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    if name == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    return optuna.samplers.RandomSampler(seed=seed)


def _pruner(plan: Plan) -> optuna.pruners.BasePruner:
    if plan.pruner == "median":
        return optuna.pruners.MedianPruner()
    if plan.pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=_FACTOR)
    if plan.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(
            max_resource=max(plan.evaluations, 1), reduction_factor=_FACTOR
        )
    return optuna.pruners.WilcoxonPruner()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what Optuna says of its own workings, which a user of a command can do nothing about."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
