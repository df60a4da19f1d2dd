"""The sources that a config, or the flag of a command, names."""

from __future__ import annotations

from jaxft.config import ConfigDict
from jaxft.data.sources import Source, open_source


def open_named(
    spec: str, data: ConfigDict, *, labelled: bool = True, cache: str | None = None
) -> Source:
    """A source opened as `config.data` says; arguments as of `open_source`.

    Raises:
      ValueError: it cannot be opened; one line.
    """
    return open_source(
        spec,
        data_dir=data.dir or None,
        delimiter=data.delimiter,
        sample_by=data.sample_by,
        labelled=labelled,
        cache=cache,
    )
