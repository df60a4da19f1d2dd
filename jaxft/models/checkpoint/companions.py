"""What an export has beside its weights and their config: a model card, a certificate, copied files."""

import hashlib
import os
import re
import shutil
from collections.abc import Mapping

from jaxft.base.json_file import read_json
from jaxft.models.checkpoint.checkpoint_files import COMPANIONS, require_plain

CARD, CERTIFICATE = "README.md", "certificate.json"
WRITER = "jaxft"  # of a certificate, under the key 'written by'
_MOST = 2**20  # characters of a card that are looked at
_SIGNED = re.compile(r"(.*)\n<!-- jaxft ([0-9a-f]{16}) -->\n", re.DOTALL)
_LICENCE = re.compile(
    r"---\r?\n.*?^license:[ \t]*([\w.+-]{1,80})[ \t]*\r?$.*?^---", re.DOTALL | re.M
)


def place(source: str | None, directory: str, files: Mapping[str, str]) -> None:
    """What of COMPANIONS `source` has (None: nothing), and these texts by their names among them."""
    if source is not None:
        copy(source, directory)
    for name, text in files.items():
        assert name in COMPANIONS, name
        with open(os.path.join(directory, name), "w", encoding="utf-8", newline="\n") as file:
            file.write(text)


def copy(source: str, directory: str) -> None:
    """The files of `source` that tokenise text, prepare images or say how to generate."""
    for name in COMPANIONS:
        path = os.path.join(source, name)
        if os.path.exists(path):
            require_plain(path)
            shutil.copyfile(path, os.path.join(directory, name))


def write_card(directory: str, text: str) -> None:
    """README.md, with a digest of itself at its end, by which a later export knows it again."""
    with open(os.path.join(directory, CARD), "w", encoding="utf-8", newline="\n") as file:
        file.write(f"{text}\n<!-- jaxft {_digest(text)} -->\n")


def is_ours(directory: str, name: str) -> bool:
    """Whether a card or certificate is as jaxft wrote it, so that replacing it loses nobody's words."""
    path = os.path.join(directory, name)
    try:
        require_plain(path)
        if name == CERTIFICATE:
            value = read_json(path)
            return isinstance(value, dict) and value.get("written by") == WRITER
        if name != CARD:
            return False
        with open(path, encoding="utf-8", newline="") as file:
            signed = _SIGNED.fullmatch(file.read(_MOST))
    except (OSError, ValueError):
        return False
    return signed is not None and signed[2] == _digest(signed[1])


def licence(directory: str) -> str:
    """What the front matter of a checkpoint's card names as its licence; '' where it names none."""
    try:
        require_plain(os.path.join(directory, CARD))
        with open(os.path.join(directory, CARD), encoding="utf-8") as file:
            found = _LICENCE.match(file.read(_MOST))
    except (OSError, ValueError):
        return ""
    return found[1] if found else ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
