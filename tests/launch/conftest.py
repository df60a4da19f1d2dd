"""What the tests of all launchers run on."""

from __future__ import annotations

import pytest

from tests.launch import runs


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return runs.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of each number of processes, where its runs are: the undisturbed one is made once."""
    return {count: tmp_path_factory.mktemp(f"processes{count}") for count in (2, 4)}
