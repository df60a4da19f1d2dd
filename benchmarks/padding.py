"""Places that are computed for nothing in an epoch, beside padding to the longest text and to the batch's.

    python benchmarks/padding.py --config configs/text_classification.py --config.model.path=DIR \\
        --config.data.train=train.csv --config.data.max_length=128

Only batches are made: no step is run, so the figures do not depend on the machine.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from jaxft.config import override
from jaxft.experiment.build import begin, read_params, share
from jaxft.experiment.prepared import prepare
from jaxft.experiment.steps import devices
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import parse


def main(argv: Sequence[str]) -> int:
    """Print a table of the two ways in which rows are filled, and of the two in which others pad."""
    _, config = parse(argv, (), with_config=True)
    assert config is not None
    longest = config.data.max_length
    for pack in (True, False):
        prepared = prepare(override(config, {"data.pack": pack, "parallel.mode": "jit"}))
        parallel = devices(prepared.config)
        params, report = read_params(prepared, parallel)
        run, _ = begin(prepared, share(prepared, parallel, report, cache=None), params)
        places, texts = 0, []
        for number in range(prepared.length.epoch):
            segments = run.train_batches[number]["segment_ids"]
            places += segments.size
            texts.append(_lengths(segments))
        real = sum(int(lengths.sum()) for lengths in texts)
        if pack:
            count = sum(map(len, texts))
            print(f"{count:,} texts, {real:,} tokens; mean {real / count:.1f}, limit {longest}")
            to_limit = count * longest - real
            of_batches = sum(len(x) * int(x.max()) for x in texts) - real
            for name, padding in (("the limit", to_limit), ("the longest of a batch", of_batches)):
                print(f"padded to {name:24} {padding:12,} places, {padding / (padding + real):.1%}")
        name = "packed" if pack else "a row a text"
        padding = places - real
        print(
            f"jaxft, {name:27} {padding:12,} places, {padding / places:.1%}; {padding / to_limit:.3f} of "
            f"padding to the limit, {padding / of_batches:.3f} of padding to the longest of a batch"
        )
    return 0


def _lengths(segments: np.ndarray) -> np.ndarray:
    """Tokens of each example of a batch's rows [R, L]."""
    counts = [np.bincount(row[row > 0])[1:] for row in segments]
    return np.concatenate([lengths[lengths > 0] for lengths in counts])


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
