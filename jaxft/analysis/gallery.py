"""Pictures of examples with words beneath them, and bars in the cells of tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxft.analysis.page import Html, element, join
from jaxft.analysis.pictures import thumbnail
from jaxft.analysis.sections import missing
from jaxft.training.rows import Row


def gallery(rows: Sequence[Row], words: Callable[[Row], Sequence[str]]) -> Html:
    """The images of prediction rows.

    words: of a row, one line each; where its image is found follows.
    """
    items = []
    for row in rows:
        lines = [part for line in (*words(row), _place(row)) for part in (line, Html("<br>"))]
        items.append(element("li", _picture(str(row.get("image", ""))), join(lines[:-1])))
    return element("ul", *items, attributes={"class": "gallery"})


def bar(value: float) -> Html:
    """A bar for a share of 1."""
    return element("span", attributes={"class": "bar", "style": f"width:{4 * value:.2f}rem"})


def _place(row: Mapping[str, Any]) -> str:
    """Where a reader finds the image: its file in its folder, else the row of the source."""
    source = str(row.get("image", ""))
    if not source or source.startswith("data:"):
        return f"row {row['index']}"
    return "/".join(source.split("/")[-2:])


def _picture(source: str) -> Html:
    found = thumbnail(source)
    if found is None:
        return missing(source[:200] or "no image")
    uri, tiny = found
    # The URI is base64 and the class ours: nothing here needs to be escaped.
    return Html(f'<img src="{uri}" alt="" class="{"tiny" if tiny else "photo"}">')
