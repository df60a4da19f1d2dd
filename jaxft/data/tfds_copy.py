"""TFDS datasets without random access (TFRecord), copied once to ArrayRecord by TFDS' own readers.

Only tensorflow reads them. So it is done in a process of its own, which gives the 0.7 GB of an imported
tensorflow back, and sees no GPU, of which tensorflow would take all memory.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxft.data import files
from jaxft.data.kept_files import check_room, keep, kept_folder, place_of

_INFO = "dataset_info.json"
_LIBRARY = "tensorflow"
_TARGET = "array_record"


def with_random_access(
    builder: Any, split: str, name: str, cache: str | None
) -> tuple[Any, tuple[str, ...]]:
    """(the builder of a copy that holds the shards of `split`, notes), or (`builder`, ()) if it has none.

    Args:
      builder: of `tfds.builder_from_directory`.
      split: as TFDS writes it, such as 'train[:50%]'; the other shards are not copied.
      name: for messages.
      cache: folder in which the copy is kept, under what the dataset says of itself and the sizes and
        times of its files; None: the user's own cache.

    Raises ValueError: no such split; tensorflow is not installed; a shard is damaged, or holds another
    number of records than the dataset says; the disk has too little room.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.file_adapters import FileFormat

    info = builder.info
    if info.available_file_formats() & FileFormat.with_random_access():
        return builder, ()
    wanted = info.splits[split].file_instructions
    kind, source = info.file_format.value, Path(builder.data_dir)
    target = _place(source, cache)
    if not (target / _INFO).exists():
        _refuse_without_library(name, kind)
        _describe(source, target, f"copying tfds:{name}")
    copy = tfds.builder_from_directory(str(target))
    shards = [
        (one.filename, other.filename, one.examples_in_shard)
        for one, other in zip(wanted, copy.info.splits[split].file_instructions, strict=True)
        if not os.path.exists(other.filename)
    ]
    if not shards:
        return copy, ()
    _refuse_without_library(name, kind)
    _copy(shards, kind, target, f"tfds:{name}")
    rows = sum(count for _, _, count in shards)
    return copy, (f"tfds:{name}: {rows:,} records of {kind}, copied once into {str(target)!r}",)


def _refuse_without_library(name: str, kind: str) -> None:
    if importlib.util.find_spec(_LIBRARY) is None:
        raise ValueError(
            f"tfds:{name} is prepared as {kind}, which {_LIBRARY} alone reads: pip install {_LIBRARY}-cpu, "
            f"for a copy that is made once, or prepare it again by `tfds build … --file_format={_TARGET}`"
        )


def _place(source: Path, cache: str | None) -> Path:
    """The folder of the copy, another one for each state of the files of `source`."""
    facts = [
        f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}"
        for path in sorted(source.iterdir())
        if path.is_file()
    ]
    digest = hashlib.blake2b((source / _INFO).read_bytes(), digest_size=16).hexdigest()
    return place_of(kept_folder(cache), ("tfds", str(source), digest, *facts), source.name)


def _describe(source: Path, target: Path, what: str) -> None:
    """Copies all that is there but records, the info last and with the other format."""
    said = json.loads((source / _INFO).read_text())
    for path in source.iterdir():
        if path.suffix in (".json", ".txt") and path.name != _INFO:
            keep(target / path.name, [path.read_bytes()], what)
    keep(target / _INFO, [json.dumps({**said, "fileFormat": _TARGET}).encode()], what)


def _copy(shards: Sequence[tuple[str, str, int]], kind: str, target: Path, what: str) -> None:
    """Writes the shards; each appears by a rename, when it is whole."""
    size = sum(os.path.getsize(files.existing(path)) for path, _, _ in shards)
    check_room(target, size, 0, f"copying {what}")
    folder = Path(tempfile.mkdtemp(dir=target, suffix=".tmp"))
    try:
        made = [(a, str(folder / os.path.basename(b)), count) for a, b, count in shards]
        done = subprocess.run(
            [sys.executable, "-m", "jaxft.data.tfds_copy"],
            input=json.dumps({"kind": kind, "shards": made}),
            text=True,
            capture_output=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        if done.returncode:
            told = (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]
            raise ValueError(f"{what}: cannot be copied ({told[:300]})")
        for (_, path, _), (_, final, _) in zip(made, shards, strict=True):
            os.replace(path, final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _main() -> int:
    """In the other process: copies the records of the shards named on standard input, as they are."""
    from tensorflow_datasets.core.file_adapters import ADAPTER_FOR_FORMAT, FileFormat

    order = json.load(sys.stdin)
    reader, writer = (ADAPTER_FOR_FORMAT[FileFormat(kind)] for kind in (order["kind"], _TARGET))

    def records(path: str, count: int) -> Iterator[tuple[int, bytes]]:
        number = 0
        for number, record in enumerate(reader.make_tf_data(path).as_numpy_iterator(), start=1):
            yield number, record
        if number != count:
            raise ValueError(f"it holds {number} records where {_INFO} says {count}")

    for path, out, count in order["shards"]:
        try:
            writer.write_examples(out, records(path, count))
        except Exception as error:  # of tensorflow's own types
            print(f"{os.path.basename(path)}: {files.first_line(error)}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
