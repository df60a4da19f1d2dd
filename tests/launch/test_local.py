"""launch/local.sh: any process killed in every phase, and signals."""

from __future__ import annotations

import pytest

from tests.launch import runs

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("count", [2, 4])
def test_kill_9_of_any_process_at_any_moment(world, tmp_path, count, request):
    """As many as --kills, in every phase: the others end, the same command continues, nothing differs."""

    def launch(run):
        return runs.launched("launch/local.sh", count, *runs.arguments(world, run))

    phases, draw = runs.chosen(request)
    runs.survive_kills(launch, tmp_path, phases, count, draw, bound=60)
