"""A learning rate for a run: what `find_lr` does."""

from __future__ import annotations

import json
from pathlib import Path

from jaxft.analysis import range_page
from jaxft.analysis.range_curve import (
    FEWEST_STEPS,
    RangeCurve,
    recommended,
    suggestions,
)
from jaxft.analysis.range_page import RangeTest
from jaxft.config import ConfigDict
from jaxft.experiment.compilation import use_compilation_cache
from jaxft.experiment.output import Output, check_pair
from jaxft.search.range_test import Told, range_test

_HIGHEST = 10.0  # what optim.lr may be


def find_lr(
    config: ConfigDict, *, lowest: float, highest: float, steps: int, seeds: int, output: str,
    told: Told | None = None,
) -> RangeTest:  # fmt: skip
    """Make the test, read its curve, and write find_lr.json and find_lr.html into `output`.

    Args:
      config: of the run; its optim.lr, schedule and warm-up are not used.
      lowest, highest, steps, seeds, told: see `range_test`.
      output: folder; made where it is not there.

    Raises:
      ValueError: an argument, the config or the output is not usable, or the curve cannot be read.
      FloatingPointError: the loss of the first batch is not finite.
    """
    if not 0 < lowest < highest <= _HIGHEST:
        raise ValueError(
            f"--lowest={lowest:g} and --highest={highest:g}: rates are above 0, at most {_HIGHEST:g}, and "
            "the highest is above the lowest"
        )
    if steps < FEWEST_STEPS:
        raise ValueError(f"--steps={steps} are too few to be read; give at least {FEWEST_STEPS}")
    if seeds < 1:
        raise ValueError(f"--seeds={seeds}: give at least 1")
    files = check_pair(
        Path(output),
        ("find_lr.json", range_page.is_json),
        ("find_lr.html", range_page.is_page),
        reads={"--config.data.train": config.data.train},
        written_by="find_lr",
    )
    use_compilation_cache(config.train.compile_cache)
    tested = range_test(
        config, lowest=lowest, highest=highest, steps=steps, seeds=seeds,
        cache=config.data.cache or None, told=told,
    )  # fmt: skip
    found = suggestions(tested.curve)
    c = config.optim
    result = RangeTest(
        config.task, config.model.path, tested.prepared.splits.train.source.name, c.optimizer, c.lr,
        config.train.batch_size, config.train.seed, tested.together, tested.curve, found,
        recommended(found), _by_seed(tested.curve), tested.notes,
    )  # fmt: skip
    texts = (json.dumps(range_page.to_json(result), indent=1), range_page.render(result))
    for path, text in zip(files, texts, strict=True):
        with Output(path) as file:
            file.write((text + "\n").encode("utf-8", "replace"))
    return result


def _by_seed(curve: RangeCurve) -> dict[str, tuple[float, ...]]:
    found: dict[str, tuple[float, ...]] = {}
    for losses in curve.losses:
        for one in suggestions(RangeCurve(curve.rates, losses[None], curve.planned)):
            found[one.name] = (*found.get(one.name, ()), one.rate)
    return found
