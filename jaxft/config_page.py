"""docs/config.md, written from the table of fields: `python -m jaxft.config_page > docs/config.md`."""

from __future__ import annotations

from typing import Any

from jaxft.config_field import Field, Need
from jaxft.config_fields import BY_NAME, FIELDS, SECTIONS

_ABOUT = """\
# Every field of a config

Set in a config file (`config.optim.lr = 1e-4`, or a dict for `override`), on the command line
(`--config.optim.lr=1e-4`) or from Python (`jaxft.train(config, workdir, {"optim.lr": 1e-4})`). `none`
means: decided from the data or the checkpoint, or not used. A duration is '100 steps', '2 epochs', or
'10%' of the run. This page is written from `jaxft/config_fields.py`.
"""
_TITLES = {
    "": "The task", "model": "Model", "data": "Data", "train": "Training",
    "distill": "A teacher", "optim": "Optimizer",
    "eval": "Evaluation", "parallel": "Devices", "checkpoint": "Checkpoints", "log": "Logs",
}  # fmt: skip


def page() -> str:
    """Markdown: a table per section, a row per field."""
    parts = [_ABOUT]
    for section in ("", *SECTIONS):
        rows = [_row(field) for field in FIELDS if field.section == section]
        table = ["| field | default | may be | meaning |", "|---|---|---|---|", *rows]
        parts.append(f"## {_TITLES[section]}\n\n" + "\n".join(table) + "\n")
    return "\n".join(parts)


def _row(field: Field) -> str:
    needs = "; ".join(map(_need, field.needs))
    notes = [needs] if needs else []
    notes += ["another value compiles another step"] * field.compiled
    meaning = ". ".join([field.help, *(f"{note[0].upper()}{note[1:]}" for note in notes)])
    may_be = "a duration" if field.form == "duration" else field.allowed()
    may_be += " (or none)" * (field.form == "duration" and field.optional)
    cells = (f"`{field.name}`", _shown(field.default), may_be, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _need(need: Need) -> str:
    nothing = "empty" if BY_NAME[need.other].kind in (tuple, str) else "0"
    what = " or ".join(map(_shown, need.values)) or f"other than {nothing}"
    where = f" where it is {' or '.join(map(_shown, need.when))}" if need.when else ""
    return f"needs `{need.other}` {what}{where}"


def _shown(value: Any) -> str:
    words = {None: "none", "": "empty", (): "empty", True: "true", False: "false"}
    if isinstance(value, bool) or value in (None, "", ()):
        return words[value]
    return f"`{value}`"


if __name__ == "__main__":
    print(page(), end="")
