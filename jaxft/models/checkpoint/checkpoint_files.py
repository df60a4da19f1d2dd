"""Files of a checkpoint directory: read only if they are plain files, replaced only as a whole.

The contents of the weight files are read by tensors.py, the config by config_json.py.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from jaxft.base.json_file import require_plain

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


def listed(items: Sequence[str]) -> str:
    """The first 20 of what is wrong, and how many more there are."""
    more = f" and {len(items) - 20} more" if len(items) > 20 else ""
    return ", ".join(items[:20]) + more


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
