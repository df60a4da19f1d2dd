"""Which blocks of a checkpoint to tune, and what says so.

The option follows from probes of each block. Beside it stands whether the gradient of each block, with a head
fitted, is more than noise. AutoFreeze (Liu et al. 2021, arXiv:2102.01386) takes gradients, too: it freezes
the lowest blocks whose accumulated gradient's norm changes least from one interval of a run to the next,
which only a run can show. Spectrum (Hartford et al. 2024, arXiv:2406.06623) tunes matrices whose spectrum is
most above noise, whatever the data; that is shown, and decides nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxft.analysis.candidate import Candidate, Estimate
from jaxft.analysis.signal import Signal

HEADS = ("block", "probe", "gradient signal", "weights above noise")


def blocks_to_tune(blocks: Sequence[Estimate]) -> tuple[int | None, str]:
    """(`optim.freeze_below`, why): the blocks above the first one that is as good as the best.

    By the one-standard-error rule (Breiman et al., "Classification and Regression Trees", 1984). None:
    no block stands out, so nothing says which to leave as it is.
    """
    best = max(range(len(blocks)), key=lambda i: blocks[i].mean)
    least = blocks[best].mean - blocks[best].error
    first = next(i for i, block in enumerate(blocks) if block.mean >= least) + 1
    if first == len(blocks):
        return (
            None,
            "the probe is best after the last block, so nothing says which to leave as they are",
        )
    most = "" if first == best + 1 else f"; the most, {blocks[best]}, after block {best + 1}"
    return first, (
        f"a linear probe reads {blocks[first - 1]} after block {first} of {len(blocks)}{most}; the blocks "
        "above add nothing to it yet, and are the ones to tune"
    )


def said_of_gradients(gradients: Sequence[Signal | None], depth: int | None) -> str:
    """What the gradients say of leaving the first `depth` blocks as they are; '' where there are none.

    Args:
      depth: as of `blocks_to_tune`.
    """
    if not gradients:
        return ""
    clear = [n for n, one in enumerate(gradients, start=1) if one is not None and one.is_clear]
    if not clear:
        return (
            "the gradient of no block stands out of its noise: these rows are too few, or a linear head "
            "on the last block has what there is to learn"
        )
    said = f"the gradients of {_listed(clear)} stand out of their noise"
    if depth is None:
        return said
    below = [n for n in clear if n <= depth]
    if not below:
        return f"{said}, and none of the blocks to be left as they are"
    return (
        f"{said}, {_listed(below)} among them: to leave {'it' if len(below) == 1 else 'those'} as "
        f"{'it is' if len(below) == 1 else 'they are'} saves time and memory, and gives up what would be "
        "learned there"
    )


def _listed(numbers: Sequence[int]) -> str:
    """[1, 2, 3, 5] -> 'blocks 1-3, 5'."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][-1] == n - 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    shown = (f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"block{'s' if len(numbers) > 1 else ''} {', '.join(shown)}"


def rows(candidate: Candidate) -> list[list[str]]:
    """Cells under HEADS, one row a block."""
    gradients = candidate.gradients or (None,) * len(candidate.blocks)
    evidence = zip(candidate.blocks, gradients, candidate.weights, strict=True)
    return [
        [
            str(number), str(probe), "–" if gradient is None else str(gradient),
            "–" if weight is None else f"{weight:.3f}",
        ]
        for number, (probe, gradient, weight) in enumerate(evidence, start=1)
    ]  # fmt: skip
