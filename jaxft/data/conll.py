"""CoNLL files: a word a line with its tags behind it, and a blank line between two sentences."""

from __future__ import annotations

from pathlib import Path

from jaxft.data.files import Source, table

SUFFIXES = (".conll", ".bio", ".iob", ".iob2")
_BETWEEN_DOCUMENTS = "-DOCSTART-"


def read_conll(path: Path) -> Source:
    """A row a sentence: 'tokens', the first field of its lines, and 'tags', the last, as lists.

    Fields are separated by tabs where the first line has one, else by blanks. Those between the first
    and the last (CoNLL-2003 has two) are columns 'field2', 'field3', …; where lines have one field
    there are tokens alone. Lines of -DOCSTART-, which separate documents, are passed over.

    Raises ValueError, naming the line: an empty file, another number of fields than in the first
    line, bytes that are not UTF-8.
    """
    columns: list[list[list[str]]] = []
    lines: list[int] = []
    width, separator = 0, None
    open_sentence = False
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip() or line.startswith(_BETWEEN_DOCUMENTS):
            open_sentence = False
            continue
        if not width:
            separator = "\t" if "\t" in line else None
            width, first = len(line.split(separator)), number
            columns = [[] for _ in range(width)]
        fields = line.split(separator)
        if len(fields) != width:
            raise ValueError(
                f"{path.name}, line {number}: {len(fields)} field{'s' * (len(fields) != 1)} "
                f"({line!r:.40}), but line {first} has {width}"
            )
        if not open_sentence:
            open_sentence = True
            lines.append(number)
            for column in columns:
                column.append([])
        for column, field in zip(columns, fields, strict=True):
            column[-1].append(field)
    if not width:
        raise ValueError(f"{path.name}: the file is empty")
    return table(path.name, dict(zip(_names(width), columns, strict=True)), lines=lines)


def _names(width: int) -> list[str]:
    between = [f"field{number}" for number in range(2, width)]
    return ["tokens", *between, "tags"] if width > 1 else ["tokens"]


def _lines(path: Path) -> list[str]:
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path.name}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as "
            "UTF-8, for example by iconv -t UTF-8"
        ) from None
    # Not splitlines: a word may hold U+2028 and the like, which end no line of such a file.
    return [line.removesuffix("\r") for line in text.split("\n")]
