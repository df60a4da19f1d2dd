"""Files of a checkpoint directory: read only if they are plain files, replaced only as a whole.

What is in the weights' files is the matter of tensors.py, what the config means of config_json.py.
"""

import hashlib
import json
import os
import reprlib
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# Files beside the weights that tokenise text or prepare images; an export copies them as they are.
TOKENIZER = (
    "added_tokens.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
PREPROCESSOR = "preprocessor_config.json"
COMPANIONS = (
    *TOKENIZER,
    PREPROCESSOR,
    "processor_config.json",
    "chat_template.jinja",
    "generation_config.json",
)

# The config of 20,000 classes has 1.5 MB, the index of a model of 700 GB 10 MB.
_MOST_JSON = 64 * 2**20
_DEEPEST = 50  # levels of JSON; a config has 3
_KINDS = {
    stat.S_ISDIR: "a directory",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 60


def brief(value: Any) -> str:
    """As repr, but one line of bounded length, whatever a file holds."""
    return _repr.repr(value)


def listed(items: Sequence[str]) -> str:
    """The first 20 of what is wrong, and how many more there are."""
    more = f" and {len(items) - 20} more" if len(items) > 20 else ""
    return ", ".join(items[:20]) + more


def require_plain(path: str) -> os.stat_result:
    """The status of a plain file or of a link to one; opening a pipe would wait for a writer.

    Raises:
        ValueError: it is something else.
        OSError: it is not there or cannot be looked at.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = next((kind for test, kind in _KINDS.items() if test(status.st_mode)), "special")
        raise ValueError(f"{path} is {kind}; a plain file is needed")
    return status


def read_json(path: str) -> Any:
    """A JSON file in UTF-8, without what another reader would read otherwise.

    Raises:
        ValueError: no plain file, larger than 64 MiB, not UTF-8, no JSON, a key twice in an object,
            half a surrogate pair in a string, or nested deeper than 50 levels. One line with path.
        OSError: it is not there or cannot be read.
    """
    size = require_plain(path).st_size
    if size > _MOST_JSON:
        raise ValueError(f"{path} has {size:,} bytes; at most {_MOST_JSON:,} are read as JSON")
    with open(path, "rb") as file:
        data = file.read()
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_object)
        _check_depth(value)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte {error.start} is {data[error.start]:#x}"
        ) from None
    except UnicodeEncodeError:
        raise ValueError(f"{path} has half a surrogate pair (\\ud800 to \\udfff) in it") from None
    except RecursionError:
        raise ValueError(f"{path} is nested deeper than {_DEEPEST} levels") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    return value


def digest(paths: Iterable[str]) -> str:
    """SHA-256 of names and contents of the files that are there; '' if none is."""
    found = [path for path in paths if os.path.exists(path)]
    sha = hashlib.sha256()
    for path in found:
        require_plain(path)
        with open(path, "rb") as file:
            contents = hashlib.file_digest(file, "sha256").digest()
        sha.update(os.fsencode(os.path.basename(path)) + b"\0" + contents)
    return sha.hexdigest() if found else ""


@contextmanager
def replacing(output: str, check: Callable[[str], None]) -> Iterator[str]:
    """A directory to fill, which takes the place of `output` on success and vanishes otherwise.

    All happens in one fresh directory beside `output`, `OUTPUT.exporting-XXXXXXXX`: `new` is filled
    in it, the earlier export moves into it as `previous`, `new` moves out. A process killed at any
    moment leaves the earlier export at `output`, or the new one, or (between two renames) neither,
    and then both are whole in that directory. What it leaves is in nobody's way, and nobody else
    deletes it.

    Args:
        output: absent, or a directory. A link to one stays: what it points to is replaced.
        check: raises ValueError for a directory that is not to be deleted. Asked twice, since
            something may be put there while `new` is filled.

    Raises:
        OSError: it cannot be written there; the earlier export stays. Names `output`.
    """
    output = os.path.realpath(output)
    check(output)
    parent, name = os.path.split(output)
    os.makedirs(parent, exist_ok=True)
    with _naming(output):
        holder = tempfile.mkdtemp(prefix=f"{name[:40]}.exporting-", dir=parent)
    new, previous = os.path.join(holder, "new"), os.path.join(holder, "previous")
    try:
        with _naming(output, holder):
            os.mkdir(new)  # with the rights that the umask gives; mkdtemp's are the owner's alone
            yield new
            check(output)
            _swap(output, new, previous)
    finally:
        # While it is not at `output`, `previous` is the only copy.
        if not os.path.lexists(previous):
            shutil.rmtree(holder, ignore_errors=True)


def _swap(output: str, new: str, previous: str) -> None:
    """`new` to `output`, and what was there deleted, or put back if that fails."""
    try:
        if os.path.lexists(output):
            os.rename(output, previous)
        os.rename(new, output)
    except BaseException as error:
        if os.path.lexists(previous) and os.path.lexists(new):
            try:
                os.rename(previous, output)
            except OSError:
                raise OSError(
                    getattr(error, "errno", None) or 0,
                    f"cannot be replaced ({error}); what was there is now in {previous}",
                    output,
                ) from error
        raise
    shutil.rmtree(previous, ignore_errors=True)


@contextmanager
def _naming(output: str, within: str = "") -> Iterator[None]:
    """Errors of the operating system under the name that the user gave."""
    try:
        yield
    except OSError as error:
        place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        if not error.errno or (within and place and not place.startswith(within)):
            raise
        raise OSError(error.errno, error.strerror, output) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {brief(twice)} stands twice in one object")
    return found


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise RecursionError
