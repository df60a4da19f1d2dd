"""Sets of labels, none to several an example: their names, numbers and arrays. (Reading: label_cells.py.)"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxft.base.nearest import nearest
from jaxft.data.class_weights import BALANCED, ClassWeights, balanced_labels, given_weights
from jaxft.data.files import Source, some
from jaxft.data.label_cells import Cells, columns_of, read_cells
from jaxft.data.label_names import (
    SEPARATORS,
    are_numbers,
    broken_numbers,
    chosen_names,
    listed,
    sorted_names,
    whole_numbers,
)
from jaxft.data.labels import find_target_column
from jaxft.data.targets import Batch, offsets_of, places

# Names under which columns of several labels are commonly found, the likeliest first.
SET_COLUMNS = ("labels", "label", "tags", "classes", "categories", "genres", "topics", "emotions")
# A set of labels that so many examples have is a group of its own where a share is held out.
_FREQUENT = 20
_FEW_ROWS = 8
_LOOKED_AT = 100  # rows, for a message


@dataclasses.dataclass(frozen=True)
class LabelSets:
    """names[ids[k]] for k in bounds[j]..bounds[j + 1] are the labels of the source's row rows[j]; see
    `Targets`.

    rows [n] int64, bounds [n + 1] int64, ids [m] int32 ascending in each example, dropped [d] int64;
    weights [C] float64, what a label counts in the loss where it applies, None: 1.
    """

    names: tuple[str, ...]
    rows: np.ndarray
    bounds: np.ndarray
    ids: np.ndarray
    dropped: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: np.ndarray) -> LabelSets:
        """The examples at these positions (of this selection, not of the source)."""
        counts, places = self._labels_of(positions)
        return dataclasses.replace(
            self, rows=self.rows[positions], bounds=offsets_of(counts), ids=self.ids[places]
        )

    @property
    def offsets(self) -> np.ndarray:
        return np.arange(len(self) + 1)

    def strata(self) -> np.ndarray:
        """By the set of labels where it is frequent, else by the rarest of them.

        So a held-out share has about its part of each label, the rare ones included, which chance alone
        gives to one side.
        """
        rng = np.random.default_rng(0)  # a sum of random numbers stands for a set
        marks = rng.integers(1 << 62, size=max(1, len(self.names))).astype(np.uint64)
        counts = np.diff(self.bounds)
        some = np.flatnonzero(counts)
        key = np.zeros(len(self), np.uint64)
        rarest = np.full(len(self), len(self.names))
        if len(some):
            starts = self.bounds[some]
            key[some] = np.add.reduceat(marks[self.ids], starts)
            rank = np.argsort(np.argsort(self.counts(), kind="stable"), kind="stable")
            rarest[some] = np.minimum.reduceat(rank[self.ids], starts)
        _, sets, sizes = np.unique(key, return_inverse=True, return_counts=True)
        group = np.where(sizes[sets] >= _FREQUENT, sets + len(self.names) + 1, rarest)
        return np.unique(group, return_inverse=True)[1]

    def said_of_strata(self) -> str:
        absent = int((self.counts() == 0).sum())
        lacking = f"; {absent} of the {len(self.names)} labels have none there" if absent else ""
        return f"of each label about alike{lacking}"

    def fill(self, slots: np.ndarray, inputs: Batch) -> Batch:
        """'labels' float32 [*slots.shape, C], 1 for each label of an example, and 'index' int32 and
        'weight' float32 of the shape of slots; where labels have weights, 'label_weights' float32 as
        'labels'."""
        flat = slots.ravel()
        labels = np.zeros((len(flat), len(self.names)), np.float32)
        real = np.flatnonzero(flat >= 0)
        labels[real] = self.dense(flat[real])
        labels = labels.reshape(*slots.shape, len(self.names))
        batch = {"labels": labels, **places(self.rows, slots)}
        if self.weights is not None:
            batch["label_weights"] = np.where(labels > 0, self.weights, 1).astype(np.float32)
        return batch

    def contents(self) -> tuple[np.ndarray, ...]:
        return self.rows, self.bounds, self.ids

    def dense(self, positions: np.ndarray) -> np.ndarray:
        """[k, C] bool: which labels the examples at these positions have."""
        counts, places = self._labels_of(positions)
        dense = np.zeros((len(positions), len(self.names)), bool)
        dense[np.repeat(np.arange(len(positions)), counts), self.ids[places]] = True
        return dense

    def weighted(self, given: ClassWeights) -> LabelSets:
        """A label that applies counts in the loss what it weighs: 'balanced', or (name, weight) pairs."""
        if given == BALANCED:
            return dataclasses.replace(self, weights=balanced_labels(self.counts(), len(self)))
        return dataclasses.replace(self, weights=given_weights(given, self.names))

    def counts(self) -> np.ndarray:
        """[C] examples that have each label."""
        return np.bincount(self.ids, minlength=len(self.names))

    def numbered_as(self, names: Sequence[str]) -> LabelSets:
        """The same labels under another numbering of the same names."""
        number = {name: i for i, name in enumerate(names)}
        new = np.array([number[name] for name in self.names], np.int32)[self.ids]
        row = np.repeat(np.arange(len(self)), np.diff(self.bounds))
        ids = new[np.lexsort((new, row))]
        return dataclasses.replace(self, names=tuple(names), ids=ids)

    def _labels_of(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many labels the examples at these positions have [k], and where these are in `ids`."""
        # (Of all bounds it would cost the whole split for every batch.)
        counts = self.bounds[positions + 1] - self.bounds[positions]
        first = self.bounds[positions] - (np.cumsum(counts) - counts)
        return counts, np.repeat(first, counts) + np.arange(counts.sum())


def find_set_column(source: Source, given: str = "") -> str:
    """The column of the sets: as given, or found by usual names; 'a,b,c' are columns of 0 and 1."""
    if "," in given and given not in source.columns:
        columns = [name.strip() for name in given.split(",") if name.strip()]
        if twice := [name for name in columns if columns.count(name) > 1]:
            raise ValueError(f"config.data.label={given!r} names {twice[0]!r} twice")
        for name in columns:
            find_target_column(source, name, {}, SET_COLUMNS, "label")
        return ",".join(columns)
    try:
        return find_target_column(source, given, source.item_names, SET_COLUMNS, "label")
    except ValueError as error:
        names = _indicators(source)
        if given or len(names) < 2:
            raise
        raise ValueError(
            f"{error}; the columns of 0 and 1 are named by config.data.label='{','.join(names)}'"
        ) from None


def read_label_sets(
    source: Source,
    column: str,
    *,
    names: Sequence[str] | None = None,
    classes: Sequence[str] = (),
    drop_missing: bool = False,
    advice: str = "",
) -> LabelSets:
    """Reads the sets of labels of a source; see `read_cells` for how they may be written.

    Args:
      column: as `find_set_column` gives it.
      names: of the training data; None: this is it, and its names are those of its class numbers, else
        its values, sorted.
      classes: keep only these labels; of lists of 0 and 1, the names of all entries in order.
      drop_missing: leave out rows whose cell is missing (None, not an empty list or text) rather than
        raise ValueError.
      advice: how the user can ask for that, for the message of this error.

    Raises ValueError: a cell is missing or holds something else; a label is not among the names; the
    training data has one label in every row, one label in all, or as many labels as rows.
    """
    cells = read_cells(source, column, known=names or classes, entries=classes)
    missing = np.flatnonzero(cells.missing)
    if len(missing) and not drop_missing:
        raise ValueError(_missing(source, column, missing) + advice)
    if not len(cells.ids):
        raise ValueError(f"{source.name}: column {column!r} has no label in any row")
    texts = _plain(source, column, cells.names, cells.codes())
    if names is None:
        own = cells.order or source.item_names.get(column) or source.class_names.get(column)
        names = own or sorted_names(set(texts))
        _check_names(source, column, names, cells, chosen=bool(own or classes))
        names = chosen_names(source, names, classes)
        _check_sets(source, column, cells)
    number = {name: i for i, name in enumerate(names)}
    ids = np.array([number.get(text, -1) for text in texts], np.int64)[cells.ids]
    row = np.repeat(np.arange(len(source)), cells.counts)
    if not classes:
        _check_known(source, row, ids, cells, texts, names)
    # Sorted by row, then label; a label that is there twice counts once.
    keys = np.unique(row[ids >= 0] * len(names) + ids[ids >= 0])
    row, ids = np.divmod(keys, len(names))
    bounds = offsets_of(np.bincount(row, minlength=len(source)))
    sets = LabelSets(tuple(names), np.arange(len(source)), bounds, ids.astype(np.int32))
    kept = sets.take(np.flatnonzero(~cells.missing))
    return dataclasses.replace(kept, dropped=missing)


def _plain(
    source: Source, column: str, names: Sequence[str], first: Mapping[int, int]
) -> list[str]:
    """'1.0' -> '1' where all names are whole numbers; ValueError for numbers that are not whole."""
    if column in source.item_names or not are_numbers(names):
        return list(names)
    if broken := broken_numbers(names):
        raise ValueError(
            f"{source.where(first[names.index(broken[0])])}: column {column!r} holds numbers that are "
            f"not whole ({listed(broken, 3)}), so no labels; for labels, round or name them; to learn one "
            "number of each text set config.task='text_regression'"
        )
    whole = whole_numbers(names)
    return [whole.get(name, name) for name in names]


def _check_names(
    source: Source, column: str, names: Sequence[str], cells: Cells, *, chosen: bool
) -> None:
    if len(names) < 2:
        raise ValueError(
            f"{source.name}: column {column!r} holds one label only ({listed(names)}); to learn whether "
            "it applies write two classes and set config.task='text_classification'"
        )
    rows = int((~cells.missing).sum())
    if not chosen and rows >= _FEW_ROWS and len(names) > rows / 2:
        shown = [name if len(name) < 40 else name[:40] + "…" for name in names[:3]]
        raise ValueError(
            f"{source.name}: column {column!r} has {len(names)} different labels in {rows} rows "
            f"({', '.join(shown)}, …): not labels; name the label column by config.data.label, or, if "
            "they are labels, list them in config.data.classes"
        )


def _check_sets(source: Source, column: str, cells: Cells) -> None:
    """ValueError for single labels, of which another task makes more."""
    if (cells.counts == 1).all():
        found = cells.names[cells.ids[0]]
        raise ValueError(
            f"{source.name}: column {column!r} holds one label in every row ({found!r:.40} in the first), "
            "for which config.task='text_classification' (of images 'image_classification') is made; "
            f"several labels are a list, or one text separated by {' or '.join(SEPARATORS)}"
        )


def _check_known(
    source: Source, row: np.ndarray, ids: np.ndarray, cells: Cells, texts: Sequence[str],
    names: Sequence[str],
) -> None:  # fmt: skip
    """ValueError where a label is not among the names: the first row, and all such labels."""
    strangers = np.flatnonzero(ids < 0)
    if not len(strangers):
        return
    unknown = list(dict.fromkeys(texts[code] for code in cells.ids[strangers].tolist()))
    rows = len(np.unique(row[strangers]))
    all_of_them = f" (with {some(unknown[1:])}: {rows} rows)" if len(unknown) > 1 else ""
    raise ValueError(
        f"{source.where(int(row[strangers[0]]))}: the label {unknown[0]!r} is unknown{all_of_them}; "
        f"the model's labels are {listed(names)}{nearest(unknown[0], names)}"
    )


def _missing(source: Source, column: str, rows: np.ndarray) -> str:
    count = f"{len(rows)} rows are" if len(rows) > 1 else "1 row is"
    value = source[int(rows[0])][columns_of(source, column)[0]]
    return (
        f"{source.where(int(rows[0]))}: column {column!r} has no labels ({value!r:.40}); {count} like "
        f"this ({source.numbered(rows)}; that none applies is an empty list or text): label them, or "
        "leave them out"
    )


def _indicators(source: Source) -> list[str]:
    """Columns that hold 0 and 1 alone, as far as the first rows tell."""
    rows = np.arange(min(_LOOKED_AT, len(source)))
    _, values = next(source.chunks(source.columns, rows))
    plain = (int, float, str)
    return [
        column
        for column, cells in zip(source.columns, values, strict=True)
        if all(
            isinstance(cell, plain) and str(cell) in ("0", "1", "True", "False") for cell in cells
        )
    ]
