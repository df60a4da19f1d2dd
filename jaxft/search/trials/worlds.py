"""What trials have in common, read once: data, source weights, and programs by what they compute."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jaxft.base.nested import flatten
from jaxft.config import ConfigDict
from jaxft.experiment.build import (
    Run,
    Shared,
    begin,
    check_trains,
    own_copy,
    read_params,
    share,
    with_references,
)
from jaxft.experiment.compilation import use_compilation_cache
from jaxft.experiment.opening import Given
from jaxft.experiment.prepared import Prepared, prepare
from jaxft.experiment.steps import devices, structure
from jaxft.experiment.teaching import with_teacher
from jaxft.models import ReadReport
from jaxft.training.mesh import make_parallel
from jaxft.training.parallel import Parallel
from jaxft.training.programs import Programs
from jaxft.training.step import TrainState

# Fields besides those of the model by which two worlds have other weights or other programs.
_MODEL = ("task", "model.", "parallel.", "data.mixture", "eval.batch_size")


@dataclasses.dataclass(frozen=True)
class _Model:
    """Weights as trials begin with them, where they are placed, and what was not in the checkpoint."""

    parallel: Parallel
    params: Any
    report: ReadReport


@dataclasses.dataclass(frozen=True)
class _World:
    """The same data and the same model: `base` is of the config that came first."""

    base: Prepared
    model: _Model
    shared: Shared


class Worlds:
    """Opened as trials ask for them, and kept.

    Trials over the same data and model are in one world, which has tokens, evaluation batches and weights
    once; worlds over one model and other rows, such as folds, have its weights and programs in common.

    Args:
      cache: folder of tokenised text, where `config.data.cache` names none.
      given: sources in memory, see `open_named`.
      readers: trials over about the same rows, of which a frozen prefix is worth keeping the more.
    """

    def __init__(self, cache: Path, given: Given | None = None, readers: int = 1):
        self._cache, self._given, self._readers = str(cache), given, readers
        self._bases: list[Prepared] = []
        self._worlds: dict[tuple[int, bool], _World] = {}  # by the base's number
        self._models: dict[Any, _Model] = {}
        self._first: dict[Any, Shared] = {}  # of each model the first world
        self._runs: dict[Any, Run] = {}  # of each program the first run
        self._programs: dict[Any, dict[Any, Programs]] = {}

    def prepared(self, config: ConfigDict) -> Prepared:
        """What is known of a trial before a weight is read. Data that are open are not opened again.

        Raises:
          ValueError: it cannot work; one line.
        """
        if config.train.on_nonfinite == "rollback":
            raise ValueError(
                "config.train.on_nonfinite='rollback' goes back to a checkpoint, and trials save none; "
                "'skip' leaves the same updates out"
            )
        number = self._number(config)
        if number is None:
            found = prepare(config, self._cache_of(config), self._given)
            self._bases.append(found)
        else:
            found = self._bases[number].trial(config)
        check_trains(found)
        return found

    def begin(
        self, prepared: Prepared, *, together: bool = False, like: Run | None = None
    ) -> tuple[Run, TrainState]:
        """A run and its first state; `prepared` is of `self.prepared`.

        Args:
          together: for one of several that run as one program: the batches are those of one device, and
            the state shares its weights with the others', so that it must not be donated.
          like: another run, whose batches are used where they are the same.
        """
        world = self._world(prepared.config, together)
        trial = world.base.trial(prepared.config)
        key = (key_of(trial), structure(trial), together)
        params = own_copy(trial, world.shared, world.model.params, copied=not together)
        run, state = begin(trial, world.shared, params, like or self._runs.get(key))
        self._runs.setdefault(key, run)
        return run, state

    def programs(self, run: Run, *differing: Any) -> dict[Any, Programs]:
        """Of trials that run as one program, as groups before left them: to be added to.

        differing: what decides them besides the structure.
        """
        key = (key_of(run.prepared), structure(run.prepared), differing)
        return self._programs.setdefault(key, {})

    def source(self, run: Run, *, together: bool = False) -> Any:
        """The whole tree that runs of its model begin with, placed; what no checkpoint has is as the seed
        of the first of them drew it."""
        return self._world(run.prepared.config, together).model.params

    def number(self, prepared: Prepared) -> int:
        """Of the data and model: equal for trials whose rows are the same."""
        number = self._number(prepared.config)
        assert number is not None, "prepared comes first"
        return number

    def _number(self, config: ConfigDict) -> int | None:
        """Of the base that has this config's data and model; None: there is none yet."""
        for number, base in enumerate(self._bases):
            learns = config.distill.teacher and config.distill.weight
            if not base.unshared(config) and not (learns and base.teacher is None):
                return number
        return None

    def _world(self, config: ConfigDict, together: bool) -> _World:
        number = self._number(config)
        assert number is not None, "prepared comes first"
        together = together and devices(config).mode != "jit"  # else there is no difference
        if (number, together) not in self._worlds:
            self._worlds[number, together] = self._opened(self._bases[number], together)
        return self._worlds[number, together]

    def _opened(self, base: Prepared, together: bool) -> _World:
        use_compilation_cache(base.config.train.compile_cache)
        key, cache = (key_of(base), together), self._cache_of(base.config)
        if key in self._models:
            parallel = self._models[key].parallel
        else:
            parallel = make_parallel("jit") if together else devices(base.config)
        # Before the weights, so that the teacher's are gone when those come.
        base = with_teacher(base, parallel, cache=cache)
        if key not in self._models:
            self._models[key] = _Model(parallel, *read_params(base, parallel))
        model = self._models[key]
        base = with_references(base, parallel, model.params, model.report, cache=cache)
        shared = share(base, parallel, model.report, cache=cache, readers=self._readers)
        # The program is the same; of its shapes only the new ones will be compiled.
        first = self._first.setdefault(key, shared)
        return _World(base, model, dataclasses.replace(shared, eval_step=first.eval_step))

    def _cache_of(self, config: ConfigDict) -> str:
        return str(config.data.cache or self._cache)


def key_of(prepared: Prepared) -> tuple[Any, ...]:
    """Equal for trials that can begin with the same weights and be evaluated by the same program."""
    values = flatten(prepared.config)
    own = tuple((f, x) for f, x in values.items() if f.startswith(_MODEL))
    return prepared.directory, prepared.splits.names, own
