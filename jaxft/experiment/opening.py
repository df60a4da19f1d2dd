"""The sources that a config, or the flag of a command, names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxft.config import ConfigDict
from jaxft.data import remote
from jaxft.data.combined import mixed, renamed
from jaxft.data.inputs import KINDS
from jaxft.data.sources import Source, open_source
from jaxft.data.stream import Stream, handed_stream, open_stream

# Sources, and of training data an iterable dataset, too.
Given = Mapping[str, Any]


# What a config says of data that was handed over: 'memory:train'.
MEMORY = "memory:"


def open_training(
    data: ConfigDict, *, inputs: str, cache: str | None = None, given: Given = MappingProxyType({})
) -> Source:
    """The training data that `config.data` names; arguments as of `open_named`.

    Raises:
      ValueError: it cannot be opened; one line.
    """
    if not data.mixture and not data.train:
        raise ValueError("config.data.train is empty: give a file, a folder or a data set name")
    if not data.mixture:
        return open_named(data.train, data, inputs=inputs, cache=cache, given=given)
    parts = [
        open_named(spec, data, inputs=inputs, cache=cache, given=given) for spec, _ in data.mixture
    ]
    names = [re.sub(r"[^\w.:-]+", "_", part.name) for part in parts]
    weights = [weight for _, weight in data.mixture]
    return mixed(names, parts, weights, data.mixture_temperature)


def open_streamed(data: ConfigDict, given: Given = MappingProxyType({})) -> Stream:
    """The training data that `config.data` names, to be read block by block: `data.stream` rows.

    Raises:
      ValueError: it cannot be opened as a stream; one line.
    """
    if not data.train:
        raise ValueError("config.data.train is empty: give files or a data set name")
    if data.train.startswith(MEMORY):
        return handed_stream(data.train, _handed(data.train, given), data.stream)
    return open_stream(data.train, data.stream, delimiter=data.delimiter, sample_by=data.sample_by)


def named_anew(source: Source, data: ConfigDict, *, labelled: bool = True) -> Source:
    """With its columns renamed as `config.data.rename` says."""
    # New rows have no label, so they may lack a column that was renamed.
    pairs = [(old, new) for old, new in data.rename if labelled or old in source.columns]
    return renamed(source, pairs)


def _handed(spec: str, given: Given) -> Any:
    if (name := spec.removeprefix(MEMORY)) not in given:
        raise ValueError(
            f"{spec}: this data was handed over in memory, by jaxft.train(..., data=...); hand it over "
            "again, or name data of a file"
        )
    return given[name]


def open_named(
    spec: str | Source,
    data: ConfigDict,
    *,
    inputs: str,
    labelled: bool = True,
    cache: str | None = None,
    given: Given = MappingProxyType({}),
) -> Source:
    """A source opened as `config.data` says; arguments as of `open_source`.

    Args:
      spec: its name, or the source itself.
      inputs: kind of the task's, see `KINDS`.
      given: sources in memory, by what `spec` has behind 'memory:'.

    Raises:
      ValueError: it cannot be opened; one line.
    """
    if isinstance(spec, Source):
        source = spec
    elif spec.startswith(MEMORY) and not remote.is_remote(spec):
        source = _handed(spec, given)
        if not isinstance(source, Source):
            raise ValueError(
                f"{spec} is a streamed dataset, which has no random access: for training give "
                "config.data.stream, the rows in memory at a time; else load it with streaming=False"
            )
    else:
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
    return named_anew(source, data, labelled=labelled)
