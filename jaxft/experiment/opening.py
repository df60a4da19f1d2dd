"""The sources that a config, or the flag of a command, names."""

from __future__ import annotations

from jaxft.config import ConfigDict
from jaxft.data.combined import renamed
from jaxft.data.inputs import KINDS
from jaxft.data.sources import Source, open_source


def open_named(
    spec: str, data: ConfigDict, *, inputs: str, labelled: bool = True, cache: str | None = None
) -> Source:
    """A source opened as `config.data` says; arguments as of `open_source`.

    Args:
      inputs: kind of the task's, see `KINDS`.

    Raises:
      ValueError: it cannot be opened; one line.
    """
    source = open_source(
        spec,
        data_dir=data.dir or None,
        delimiter=data.delimiter,
        sample_by=data.sample_by,
        labelled=labelled,
        skip=data.on_bad_row != "error",
        images=KINDS[inputs].model == "image",
        cache=cache,
    )
    # New rows have no label, so they may lack a column that was renamed.
    pairs = [(old, new) for old, new in data.rename if labelled or old in source.columns]
    return renamed(source, pairs)
