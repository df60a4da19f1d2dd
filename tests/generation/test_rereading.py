"""Rows of texts that are read again for each token; what is written in them is in tests/bridge."""

from types import SimpleNamespace

import pytest

from jaxft.generation.decoding import Settings, check
from jaxft.generation.rereading import row_length, row_lengths


@pytest.mark.parametrize("model_type", ["xlnet", "prophetnet"])
def test_a_model_that_looks_ahead_is_refused(model_type):
    with pytest.raises(ValueError, match=f"{model_type} is bridged, .* depends on what follows"):
        check(SimpleNamespace(model_type=model_type, head="causal"), (), Settings(12))


def test_programs_are_as_few_as_powers_of_two():
    assert row_lengths(1024) == [32, 64, 128, 256, 512, 1024]
    assert row_lengths(300) == [32, 64, 128, 256, 300]
    assert row_lengths(10) == [10]
    assert [row_length(n, 300) for n in (1, 32, 33, 299)] == [32, 32, 64, 300]
