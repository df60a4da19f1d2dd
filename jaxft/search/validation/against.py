"""Two cross-validations on the same folds, read from their folders or just made, and what sets them apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxft.analysis import comparison, paired, validation
from jaxft.analysis.validation import Validation
from jaxft.base.json_file import read_object
from jaxft.config import ConfigDict
from jaxft.experiment.output import Output, check_output
from jaxft.search.trials.workers import check_workers
from jaxft.search.validation.folds import Plan
from jaxft.search.validation.validating import opened
from jaxft.terminal.tables import show_comparison

JSON, PAGE = "cross_validate.json", "comparison.html"


def is_validation(path: str) -> bool:
    """Whether a folder holds what `cross_validate` found, or is about to."""
    return any((Path(path) / name).is_file() for name in (JSON, "plan.json"))


def read_validation(path: str) -> Validation:
    """What `cross_validate` found.

    Raises:
      ValueError: it has not ended there, or the file is not what it wrote.
    """
    file = Path(path) / JSON
    found = read_object(file)
    if found is None:
        raise ValueError(
            f"{path} has no {JSON}: its cross-validation has not ended; the same command goes on with it"
        )
    return validation.from_json(found, str(file))


def show_validation(found: Validation, output: str) -> None:
    """A table of the metrics, what must be known of them, and where the files are. output: their folder."""
    heads, rows = validation.heads(found), validation.summary_rows(found, found.shown)
    show_comparison(heads, rows, [*found.notes, validation.method(found)], words=1)
    print(found.said_of(found.metric))
    print(f"page: {output}/cross_validate.html, predictions: {output}/predictions.jsonl")


def shown_pair(paths: Sequence[str]) -> Callable[[], str]:
    """Show the two of `compare` in the terminal. Returns what makes their page.

    Raises:
      ValueError: not two cross-validations, or they are no pair; one line.
    """
    for path in paths:
        if not is_validation(path):
            raise ValueError(
                f"{path} is no cross-validation, another of those given is one: compare takes runs, or two "
                "cross-validations"
            )
    if len(paths) != 2:
        raise ValueError(
            f"{len(paths)} cross-validations are given; two are compared, pair by pair of their folds"
        )
    first, second = map(read_validation, paths)
    show_pair(first, second, paths)
    return lambda: paired.render(first, second)


def show_pair(first: Validation, second: Validation, names: Sequence[str]) -> None:
    """A table of the metrics, how they were tested, and what that says.

    names: of the two, for the message.

    Raises:
      ValueError: they are no pair; one line.
    """
    paired.check_pair(first, second, names)
    heads, rows = paired.heads(first), paired.rows(first, second, first.shown)
    show_comparison(heads, rows, paired.notes(first, second), words=1)
    print(paired.verdict(first, second))


def show_pair_of(both: tuple[Validation, Validation], output: str) -> None:
    """Show and write what `cross_validate_pair` found."""
    first, second = both
    show_validation(first, output)
    show_validation(second, f"{output}/against")
    show_pair(first, second, ["--config", "--against"])
    write_pair(Path(output), first, second)
    print(f"page: {output}/{PAGE}")


def cross_validate_pair(
    first: ConfigDict, second: ConfigDict, plan: Plan, output: str, *, workers: int = 1
) -> tuple[Validation, Validation]:
    """Both, the second in `output/against`; what makes them no pair is found before the first trial.

    Args:
      workers: see `cross_validate`.

    Raises:
      ValueError, OSError: as of `cross_validate`; or the two hold out other rows.
    """
    tasks = [config.task for config in (first, second)]
    if tasks[0] != tasks[1]:
        raise ValueError(
            f"--config is of task {tasks[0]!r}, --against of {tasks[1]!r}: nothing to compare"
        )
    for config in (first, second):
        check_workers(workers, config)
    with opened(first, plan, output) as a, opened(second, plan, f"{output}/against") as b:
        if a.fingerprint != b.fingerprint:
            raise ValueError(
                "--config and --against hold out other rows, so that their trials would be no pairs; give "
                "both the same data, data.group and data.split_seed"
            )
        return a.run(workers), b.run(workers)


def write_pair(folder: Path, first: Validation, second: Validation) -> None:
    """comparison.json and comparison.html."""
    texts = (
        ("comparison.json", paired.is_json, json.dumps(paired.to_json(first, second), indent=1)),
        (PAGE, comparison.is_comparison, paired.render(first, second)),
    )
    for name, earlier, text in texts:
        path = check_output(
            str(folder / name), reads={}, earlier=earlier, written_by="cross_validate --against"
        )
        with Output(path) as file:
            file.write((text + "\n").encode("utf-8", "replace"))
