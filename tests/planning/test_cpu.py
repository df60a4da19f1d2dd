"""What a process has in memory: which of its moments is the fullest."""

from __future__ import annotations

from jaxft.planning.cpu import process_bytes, resident

MIB = 2**20
STATE = {
    "trainable": 10 * MIB,
    "slots": 20 * MIB,
    "frozen": 40 * MIB,
    "statistics": 0,
    "others": MIB,
}


def test_a_checkpoint_is_copied_while_an_update_runs():
    memory = {**STATE, "needed": 500 * MIB}
    found = process_bytes(memory, own=300 * MIB, highest=350 * MIB)
    assert found == (300 + 120 + 500 + 1.5 * 30) * MIB
    # What is frozen is not saved.
    all_trained = {**memory, "trainable": 50 * MIB, "frozen": 0}
    assert process_bytes(all_trained, 300 * MIB, 350 * MIB) - found == 1.5 * 40 * MIB


def test_a_small_program_is_at_its_fullest_while_it_is_compiled():
    memory = {**STATE, "needed": 80 * MIB}
    assert process_bytes(memory, own=300 * MIB, highest=700 * MIB) == (700 + 71) * MIB


def test_a_process_has_had_at_least_what_it_has():
    now, highest = resident()
    assert 20 * MIB < now <= highest
