"""The examples in the docstrings of jaxft.optim, and every block of docs/optim.md, run."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import jaxft.optim

PAGE = Path(__file__).parents[2] / "docs" / "optim.md"
MODULES = sorted(module.name for module in pkgutil.iter_modules(jaxft.optim.__path__))
LIBRARIES = ("# optax", "# Linen", "# NNX", "# Equinox")


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_run(name):
    module = importlib.import_module(f"jaxft.optim.{name}")
    assert doctest.testmod(module).failed == 0


def test_every_public_function_that_makes_a_transform_or_a_tree_has_an_example():
    documented = {
        example.name.rpartition(".")[2]
        for name in MODULES
        for example in doctest.DocTestFinder(exclude_empty=True).find(
            importlib.import_module(f"jaxft.optim.{name}")
        )
        if example.examples
    }
    # Opposites and wrappers of one line, and what the examples of others use.
    without = {"check_patterns", "check_plan", "depths_from_rules", "exclude", "frozen_in", "gate",
               "merge_stack", "scan_split", "schedule_free_params", "averaged"}  # fmt: skip
    functions = {n for n in jaxft.optim.__all__ if n[0].islower()}
    assert functions - documented == without


def sections():
    text = PAGE.read_text()
    return {part.split("\n", 1)[0]: part for part in re.split(r"^## ", text, flags=re.M)[1:]}


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(capsys):
    names: dict = {}
    page = PAGE.read_text()
    for block in re.finditer(r"```python\n(.*?)```", page, flags=re.S):
        line = page[: block.start()].count("\n") + 1
        exec(compile("\n" * line + block[1], str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    table = re.search(r"```\n(path .*?)```", page, flags=re.S)
    assert table and table[1] in printed


def test_every_transform_has_a_what_a_when_a_paper_and_four_examples():
    transforms = {
        title: text
        for title, text in sections().items()
        if title not in ("Paths and rules", "In `jaxft.train`", "What it costs")
    }
    assert len(transforms) >= 16
    for title, text in transforms.items():
        for part in ("**What.**", "**When.**", "**Paper.**", *LIBRARIES):
            assert part in text, (title, part)


def test_the_page_names_everything_that_is_public():
    page = PAGE.read_text()
    helpers = {"Finding", "Plan", "Stage", "align", "bottom_up", "check_patterns", "check_plan",
               "Norm", "depths_from_rules", "gate", "gated", "merge_stack", "path_map", "stage_index",
               "windows"}  # fmt: skip
    missing = {name for name in jaxft.optim.__all__ if not re.search(rf"\b{name}\b", page)}
    assert missing <= helpers
