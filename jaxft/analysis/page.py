"""A small HTML writer that escapes every string that is not HTML already, and the page's style."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


class Html(str):
    """Text that is HTML. Every other string is data and gets escaped when it enters an element."""


def element(name: str, *children: str, attributes: Mapping[str, str] | None = None) -> Html:
    """
    >>> element('p', 'a < b', Html('<br>'), attributes={'class': 'note'})
    '<p class="note">a &lt; b<br></p>'
    """
    given = "".join(f' {k}="{html.escape(v)}"' for k, v in (attributes or {}).items())
    return Html(f"<{name}{given}>{join(children)}</{name}>")


def join(children: Iterable[str]) -> Html:
    """Children one after the other, escaped where they are plain strings."""
    return Html("".join(c if isinstance(c, Html) else html.escape(c) for c in children))


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, kinds: str, caption: str = ""
) -> Html:
    """A table.

    Args:
      columns: heads; all empty: no head.
      rows: cells.
      kinds: one letter a column: 't' text, 'n' number, 'w' text that may wrap anywhere, 'c' code.
      caption: shown above.
    """
    names = {"t": "text", "n": "number", "w": "wrap", "c": "code"}
    classes = [{"class": names[kind]} for kind in kinds]
    head = join(
        element("th", name, attributes={**css, "scope": "col"})
        for name, css in zip(columns, classes, strict=True)
    )
    body = join(
        element(
            "tr",
            join(element("td", c, attributes=css) for c, css in zip(row, classes, strict=True)),
        )
        for row in rows
    )
    parts = [element("caption", caption)] if caption else []
    parts += [element("thead", element("tr", head))] if any(columns) else []
    return element(
        "div", element("table", *parts, element("tbody", body)), attributes={"class": "scroll"}
    )


def figure(svg: str, caption: str) -> Html:
    """A picture with its caption, which is also what a screen reader says of it."""
    picture = element("div", Html(svg), attributes={"role": "img", "aria-label": caption})
    return element("figure", picture, element("figcaption", caption))


def page(title: str, body: Html) -> str:
    """The whole document; nothing in it refers to another file."""
    head = join(
        (
            Html('<meta charset="utf-8">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            element("title", title),
            Html(f"<style>{_STYLE}</style>"),
        )
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def has_title(path: Path, title: str) -> bool:
    """Whether a file is a page of this title."""
    with path.open("rb") as file:
        return f"<title>{title}</title>".encode() in file.read(4096)


def is_by(path: Path, writer: str) -> bool:
    """Whether a file is a JSON object whose 'written by' is this."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("written by") == writer


_STYLE = """
:root { color-scheme: light; --ink: #1d2127; --soft: #59616b; --line: #d9dde2; --wash: #f5f6f8;
  --accent: #0b5a8f; --serif: Charter, "Bitstream Charter", "Sitka Text", Cambria, Georgia, serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.6rem 1.5rem 4rem; max-width: 62rem; background: #fff;
  color: var(--ink); font: 1.0625rem/1.55 var(--serif); }
h1 { margin: 0; font-size: 2rem; line-height: 1.2; font-weight: 600; overflow-wrap: anywhere; }
h2 { margin: 2.2rem 0 .7rem; padding-top: .8rem; border-top: 1px solid var(--line);
  font-size: 1.35rem; font-weight: 600; }
h3 { margin: 1.8rem 0 .5rem; font: 600 .95rem/1.4 var(--sans); }
p { margin: .6rem 0; max-width: 44rem; }
.kicker { margin: 0 0 .3rem; color: var(--soft); font: .85rem/1.4 var(--sans); }
.lead { font-size: 1.15rem; margin-top: 1rem; }
.note, figcaption, caption { color: var(--soft); font: .85rem/1.5 var(--sans); }
.none { color: var(--soft); font-style: italic; }
nav { margin-top: 1rem; font: .9rem var(--sans); }
nav a { margin-right: 1.1rem; color: var(--accent); text-decoration: none; }
nav a:hover { text-decoration: underline; }
.tiles { display: flex; flex-wrap: wrap; gap: 0; margin: 1.5rem 0 .4rem; padding: 0;
  border-top: 1px solid var(--line); border-bottom: 1px solid var(--line); }
.tiles div { flex: 1 1 8rem; padding: .8rem 1rem .7rem 0; }
.tiles dt { color: var(--soft); font: .85rem var(--sans); }
.tiles dd { margin: .1rem 0 0; font: 600 1.6rem/1.25 var(--sans);
  font-variant-numeric: tabular-nums; }
.tiles small { display: block; color: var(--soft); font: .8rem var(--sans); }
figure { margin: 1rem 0 1.4rem; break-inside: avoid; }
figcaption { margin-top: .4rem; max-width: 44rem; }
figure svg { display: block; max-width: 100%; height: auto; }
svg text { font-family: var(--sans) !important; }
.pair { display: flex; flex-wrap: wrap; gap: 0 2rem; }
.pair > * { flex: 1 1 24rem; min-width: 0; }
.beside { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 0 1.5rem; }
.beside > * { flex: 0 1 auto; min-width: 0; max-width: 100%; }
.beside > figure { max-width: 26rem; }
.beside h3 { margin-top: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0 1.2rem; font: .9rem/1.45 var(--sans);
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .3rem; }
th, td { padding: .3rem 1.2rem .3rem 0; text-align: left; vertical-align: top; }
th { border-bottom: 1px solid var(--ink); font-weight: 600; vertical-align: bottom; }
td { border-bottom: 1px solid var(--line); }
th.number, td.number { text-align: right; white-space: nowrap; }
td.wrap { overflow-wrap: anywhere; min-width: 14rem; }
td.code { font: .82rem/1.6 var(--mono); overflow-wrap: anywhere; }
.bar { display: inline-block; height: .6rem; background: #7fb0d0; vertical-align: middle; }
.parts { display: flex; height: 1.5rem; margin: .8rem 0 .4rem; }
.parts span { min-width: 1px; border-right: 1px solid #fff; }
.key { display: inline-block; width: .8rem; height: .8rem; margin-right: .5rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr));
  gap: 1.2rem 1rem; margin: 1rem 0; padding: 0; list-style: none; font: .82rem/1.4 var(--sans); }
.gallery li { break-inside: avoid; overflow-wrap: anywhere; }
.gallery img { display: block; width: 100%; max-width: 9rem; aspect-ratio: 1; object-fit: contain;
  margin-bottom: .4rem; background: var(--wash); border: 1px solid var(--line); }
.gallery img.tiny { image-rendering: pixelated; }
ol.events { margin: 0 0 1rem; padding-left: 1.4rem; color: var(--soft);
  font: .85rem/1.6 var(--sans); }
details summary { cursor: pointer; color: var(--accent); font: .9rem var(--sans); }
footer { margin-top: 3rem; padding-top: .7rem; border-top: 1px solid var(--line);
  color: var(--soft); font: .85rem var(--sans); }
@media print {
  @page { margin: 16mm 14mm; }
  html { font-size: 11.5px; }
  body { padding: 0; max-width: none; }
  nav, details summary { display: none; }
  h2, h3 { break-after: avoid; }
  h2 + div { break-before: avoid; }
  tr { break-inside: avoid; }
  .scroll { overflow: visible; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
