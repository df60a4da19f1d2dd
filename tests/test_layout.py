"""The layout as a test: who may import whom, what import costs, and that the README's tree is true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxft.terminal.console import COMMANDS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxft"
PARTS = {
    "base",
    "data",
    "models",
    "tasks",
    "optim",
    "training",
    "analysis",
    "insight",
    "terminal",
    "experiment",
    "generation",
    "planning",
    "search",
}
# part -> parts (or single modules) it may import; `config*` are the modules of the root that are no command.
ALLOWED = {
    "base": set(),
    "optim": set(),
    "data": {"base"},
    "models": {"base"},
    "generation": {"base", "models"},
    # What a task's targets are read from, and what its metrics and its part of a report are made of.
    "tasks": {"base", "data", "analysis"},
    "terminal": {"base", "config", "config_check", "config_fields", "config_names"},
    "training": {"optim", "terminal.progress", "terminal.errors"},
    "analysis": {"base", "training.rows"},
    # Plans of machines that are not here; told by pages and pictures.
    "planning": {"base", "analysis"},
    # What is found in data, told by the pages and pictures that reports are made of.
    "insight": {"base", "data", "analysis"},
    "experiment": {"config", "config_fields", *(PARTS - {"search"})},
    # Many runs of a config that differs here and there.
    "search": {"config", "config_check", "config_fields", "config_names", *PARTS},
}


def imports(path: Path) -> set[str]:
    """Modules of jaxft that a file imports, without the leading `jaxft.`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.removeprefix("jaxft.") for name in names if name.startswith("jaxft.")}
    return found


@pytest.mark.parametrize("part", sorted(PARTS))
def test_imports_point_one_way(part):
    for path in (PACKAGE / part).rglob("*.py"):
        for name in imports(path):
            top = name.split(".")[0]
            allowed = top == part or top in ALLOWED[part]
            allowed |= any(
                name.startswith(f"{module}.") for module in ALLOWED[part] if "." in module
            )
            assert allowed, f"{path.relative_to(ROOT)} imports jaxft.{name}"


def test_the_base_is_the_standard_library_alone():
    for path in (PACKAGE / "base").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names, path


def test_no_module_reads_the_private_names_of_another():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxft"):
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                assert not private, f"{path}: {private} of {node.module}"
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                own = node.value.id in ("self", "cls", "os") or not node.attr.startswith("_")
                allowed = (
                    own or node.attr.startswith("__") or node.attr == "_replace"
                )  # named tuples
                assert allowed, f"{path}: {node.value.id}.{node.attr}"


def test_nothing_imports_a_command():
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__", "api"}
    commands = {name for name in modules if not name.startswith("config")}
    assert commands >= {"train", "evaluate", "predict", "export", "describe"}
    for path in PACKAGE.rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & commands, path


# What only works where PyTorch is installed: holding an export to it, and its own weights-only loader.
WITH_TORCH = {"experiment/certificate.py", "models/checkpoint/pickled.py"}


@pytest.mark.parametrize("module", ["torch", "tensorflow", "pickle"])
def test_what_is_never_imported_at_run_time(module):
    for path in PACKAGE.rglob("*.py"):
        bridged = path.parent == PACKAGE / "models" / "bridge"  # imported when one is asked for
        if module == "torch" and bridged:
            continue
        tree = ast.parse(path.read_text())
        allowed = module == "torch" and str(path.relative_to(PACKAGE)) in WITH_TORCH
        for node in tree.body if allowed else ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert module not in {name.split(".")[0] for name in names}, path


def test_nothing_is_evaluated():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), path


def test_the_package_itself_imports_nothing_before_it_is_asked():
    assert (PACKAGE / "__init__.py").read_text().strip().startswith(('"""', "")) and not imports(
        PACKAGE / "__init__.py"
    )


def test_help_needs_no_device_and_lists_the_flags():
    command = [sys.executable, "-m", "jaxft.train", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "--workdir" in shown.stdout and "--config" in shown.stdout and not shown.stderr


def test_files_and_functions_stay_small():
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text()
        assert source.count("\n") <= 350, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and node.name != "default_config":
                body = [
                    n for n in node.body if not isinstance(n, ast.Expr) or n is not node.body[0]
                ]
                length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
                assert length <= 60, f"{path}: {node.name} has {length} lines"


def test_a_command_is_read_at_a_glance():
    for command in COMMANDS:
        assert (PACKAGE / f"{command}.py").read_text().count("\n") <= 60, command


def test_the_readme_tree_names_every_file_of_the_package():
    readme = (ROOT / "README.md").read_text()
    tree = re.search(r"```text\njaxft/\n(.*?)```", readme, re.DOTALL)
    assert tree, "the README has no file tree"
    for path in PACKAGE.rglob("*.py"):
        # Families are in the table of what works.
        if path.name != "__init__.py" and path.parent.name != "families":
            assert re.search(rf"\b{re.escape(path.name)}\b", tree[1]), path.relative_to(ROOT)
