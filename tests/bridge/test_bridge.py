"""Runs the checks of the bridge in a process of their own: importing torchax breaks torch's optimizers,
with which other tests compare."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHECKS = ["check_models", "check_runs", "check_native", "check_resizing", "check_tasks"]
# In one process: to import torch, transformers and jax takes one 8 s of CPU.
TOGETHER = "check_models check_resizing check_runs check_native"
INSTALLED = importlib.util.find_spec("torchax") is not None


def checked(names: str, marked: str) -> None:
    """Every check of some files that is marked so passes, and none is left out."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", "-m", marked,
               *(str(HERE / f"{name}.py") for name in names.split())]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent.parent)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout


@pytest.mark.skipif(not INSTALLED, reason="needs jaxft[bridge]")
def test_in_a_process_of_their_own():
    checked(TOGETHER, "not slow")


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs jaxft[bridge]")
@pytest.mark.parametrize("name", [*CHECKS, "check_writing"])
def test_the_long_checks_in_their_own_process(name):
    checked(name, "slow")


@pytest.mark.slow
@pytest.mark.skipif(
    not INSTALLED or importlib.util.find_spec("timm") is None, reason="needs jaxft[timm]"
)
def test_timm_in_its_own_process():
    checked("check_timm", "not slow")


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch):
    from jaxft.models import load_architecture

    (tmp_path / "config.json").write_text('{"model_type": "albert"}')
    monkeypatch.setitem(sys.modules, "torchax", None)
    with pytest.raises(
        ValueError,
        match=r"'albert' is not implemented; known are bert.*pip install 'jaxft\[bridge\]'",
    ) as e:
        load_architecture(str(tmp_path), num_labels=2)
    assert "\n" not in str(e.value)
    (tmp_path / "config.json").write_text('{"model_type": "deberta-v2", "conv_kernel_size": 3}')
    lacking = (
        r"conv_kernel_size=3 .*PyTorch's own module may take it, with pip install 'jaxft\[bridge\]'"
    )
    with pytest.raises(ValueError, match=lacking):
        load_architecture(str(tmp_path), num_labels=2)
