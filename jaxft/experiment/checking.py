"""The data of a config looked at before they are trained on: what `check_data` does."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.analysis import probing
from jaxft.config import ConfigDict, override
from jaxft.data.checks import check_inputs
from jaxft.data.inputs import KINDS
from jaxft.data.label_sets import LabelSets
from jaxft.data.tags import Tags
from jaxft.data.targets import Targets
from jaxft.data.tokenizer import load_tokenizer
from jaxft.experiment.data import Splits, open_splits
from jaxft.experiment.encoder import Encoder, make_encoder
from jaxft.experiment.features import features_of, open_architecture, open_frozen
from jaxft.experiment.output import Output, check_pair
from jaxft.experiment.split import Split
from jaxft.insight import balance, damage, leaks, lengths, near, photos, report, suspicious
from jaxft.insight import suspicious_several as several
from jaxft.insight.duplicates import Groups, conflicts, exact, text_keys
from jaxft.insight.extra import needed
from jaxft.insight.finding import SHOWN, Finding
from jaxft.insight.near_texts import near_pairs
from jaxft.insight.parts import Part
from jaxft.insight.report import Report
from jaxft.tasks.contract import Task
from jaxft.tasks.table import TASKS

_FEWEST = 10  # rows that may be asked for
_LIBRARIES = ("datasketch", "cleanlab", "ftfy")


def check_data(config: ConfigDict, *, rows: int, probed: int, output: str) -> Report:
    """Look at the data and write data_report.json and data_report.html into `output`.

    Args:
      config: of the run; model.path may be empty: then nothing is known of tokens, and the probe that
        doubts labels reads words, or small versions of the images.
      rows: of each split whose contents are compared, at most; a sample by train.seed.
      probed: training rows whose labels are doubted, at most.
      output: folder; made where it is not there.

    Raises:
      ValueError: config, data, checkpoint or output are not usable; one line.
    """
    if min(rows, probed) < _FEWEST:
        raise ValueError(f"--rows={rows}, --probed={probed}: give at least {_FEWEST} each")
    for name in _LIBRARIES:  # before anything is computed
        needed(name)
    task = TASKS[config.task]
    # What train would stop at is here to be told, not to stop at.
    splits = open_splits(override(config, {"data.on_bad_row": "skip"}), task, ())
    label = task.find_column(splits.train.source, config.data.label)
    sample = _sampled(splits.train, probed, config.train.seed)
    encoder, note = _encoder(config, task, splits)
    files = check_pair(
        Path(output),
        ("data_report.json", report.is_json),
        ("data_report.html", report.is_page),
        reads={f"--config.data.{name}": config.data[name] for name in ("train", "eval", "test")},
        written_by="check_data",
    )
    named = {"train": splits.train, "eval": splits.eval} | (
        {"test": splits.test} if splits.test else {}
    )
    whole = [part_of(name, task, split, splits.columns, label) for name, split in named.items()]
    parts = [part.sample(rows, config.train.seed) for part in whole]
    found = _unusable(config, task, named, splits.columns)
    looks = _images if parts[0].are_images else _texts
    found += looks(whole, parts, encoder)
    found += [*balance.findings(whole), *leaks.columns(parts[0])]
    doubted = dataclasses.replace(
        part_of("train", task, sample, splits.columns, label), whole=len(whole[0])
    )
    doubts, why = _doubts(config, task, splits, sample, doubted)
    found += doubts
    notes = (*splits.notes, *filter(None, (note, why)))
    looked = tuple((part.name, len(part), part.whole) for part in parts)
    result = Report(config.task, config.data.train, looked, report.ordered(found), notes)
    texts = (json.dumps(report.to_json(result), indent=1), report.render(result))
    for path, text in zip(files, texts, strict=True):
        with Output(path) as file:
            file.write((text + "\n").encode("utf-8", "replace"))
    return result


def part_of(name: str, task: Task[Any], split: Split, columns: tuple[str, ...], label: str) -> Part:
    """The rows of a split, with their classes, sets of them, tags or numbers; without other targets."""
    targets = split.targets
    classes, numbers = _one_each(task, targets)
    return Part(
        name, split.source, targets.rows, task.inputs, columns, label, classes, targets.names, numbers,
        len(targets), sets=targets if isinstance(targets, LabelSets) else None,
        tags=targets if isinstance(targets, Tags) else None,
    )  # fmt: skip


def _one_each(task: Task[Any], targets: Targets) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(class numbers [n], numbers [n]), of which one is None; both, of targets of another kind."""
    if task.head is not None or KINDS[task.inputs].windowed:
        return None, None
    values = np.asarray(targets.fill(np.arange(len(targets)), {}).get("labels", ()))
    if values.shape != (len(targets),):
        return None, None
    if targets.names:
        return (values.astype(np.int64), None) if values.dtype.kind in "iu" else (None, None)
    return None, values.astype(np.float64)


def _sampled(split: Split, limit: int, seed: int) -> Split:
    if len(split.targets) <= limit:
        return split
    chosen = np.random.default_rng(seed).choice(len(split.targets), limit, replace=False)
    return split.take(np.sort(chosen))


def _encoder(config: ConfigDict, task: Task[Any], splits: Splits) -> tuple[Encoder | None, str]:
    """What turns rows into inputs of the checkpoint, if one is named."""
    if not config.model.path:
        said = "no model.path is given, so no tokens are counted"
        return None, "" if KINDS[task.inputs].model == "image" else said
    directory, architecture = open_architecture(config.model.path, config, task, splits)
    return make_encoder(config, task.inputs, directory, architecture.limits, splits, None), ""


def _doubts(
    config: ConfigDict, task: Task[Any], splits: Splits, sample: Split, part: Part
) -> tuple[list[Finding], str]:
    """(findings on suspicious labels, why there are none or why the checkpoint is not read)."""
    seed = config.train.seed
    if part.tags is not None:
        why = several.why_not(part)
        return ([] if why else several.findings_of_tags(part, seed)), why
    if part.sets is not None:
        if why := several.why_not(part):
            return [], why
        asked = several.asked_labels(part)
        dense = part.sets.dense(np.arange(len(part)))[:, asked].astype(float)
        features, by, why = _features(config, task, splits, sample, part, dense)
        probe = several.yes_or_no(features)
        return several.findings_of_sets(part, probe, by, seed), why
    if why := suspicious.can_probe(part):
        return [], why
    assert part.classes is not None
    classes, count = part.classes, len(part.names)
    features, by, why = _features(config, task, splits, sample, part, np.eye(count)[classes])
    dense_ones = isinstance(features, np.ndarray)
    make = suspicious.probe_of_features if dense_ones else suspicious.probe_of_words
    return suspicious.findings(part, make(features, classes, count), by, seed), why


def _features(
    config: ConfigDict, task: Task[Any], splits: Splits, sample: Split, part: Part, wanted: np.ndarray
) -> tuple[Any, str, str]:  # fmt: skip
    """(what the probe reads of each row, dense or sparse [n, D]; that in words; why not the checkpoint).

    wanted: [n, C], what a row has of each label; chooses the block.
    """
    why = ""
    if config.model.path and not config.model.scratch:
        try:
            frozen = open_frozen(config.model.path, config, task, splits, sample)
            params = frozen.read(config.train.seed)
            blocks, _, _ = features_of(frozen, params, sample.targets, config)
        except (
            ValueError
        ) as error:  # of a bridged module, which cannot be traced or shows no states
            why = f"{config.model.path}: {error}"
        else:
            best = _best_block(blocks, wanted, part, config.train.seed)
            return blocks[best], f"the hidden state after block {best + 1} of {len(blocks)}", why
    if not part.are_images:
        return suspicious.word_features(part), "words (TF-IDF)", why
    return photos.small(photos.looks(part)), "small grey pictures", why


def _best_block(blocks: Sequence[np.ndarray], wanted: np.ndarray, part: Part, seed: int) -> int:
    """That from which ridge regression reads the labels best, over five folds."""
    strata = part.classes if part.sets is None else part.sets.strata()
    assert strata is not None
    folds = probing.folds(strata, 5, seed)

    def right(x: np.ndarray, fitted: np.ndarray, asked: np.ndarray) -> float:
        found, truth = probing.regress(x[fitted], wanted[fitted], x[asked]), wanted[asked]
        if part.sets is None:
            return float((found.argmax(1) == truth.argmax(1)).sum())
        return -float(((found - truth) ** 2).sum())

    return int(np.argmax([sum(right(x, *fold) for fold in folds) for x in blocks]))


def _unusable(
    config: ConfigDict, task: Task[Any], named: dict[str, Split], columns: Sequence[str]
) -> list[Finding]:
    """Rows at which train would stop, or which it would leave out."""
    found: list[tuple[str, str]] = []
    kind, seen = KINDS[task.inputs], set()
    for split in named.values():
        source = split.source
        if id(source) in seen:  # what is held out is of the same source
            continue
        seen.add(id(source))
        faults = check_inputs(
            source, columns, np.arange(len(source)), inputs=kind.name, fault=kind.fault
        ).faults
        found += [(source.where(row), fault) for row, fault in faults.items()]
        found += [(source.where(int(row)), "has no label") for row in split.targets.dropped]
    if not found:
        return []
    stops = config.data.on_bad_row == "error"
    return [
        Finding(
            "rows without label or input",
            "serious" if stops else "warning",
            f"{len(found):,} rows; "
            + ("train stops at the first" if stops else "train leaves them out"),
            "mend them, or leave them out by data.on_bad_row='skip'" if stops else "",
            ("row", "what"),
            tuple(found[:SHOWN]),
            {"rows": found},
        )
    ]


def _texts(whole: list[Part], parts: list[Part], encoder: Encoder | None) -> list[Finding]:
    keys, short = zip(*map(text_keys, whole), strict=True)
    groups = Groups(whole, keys)
    found = exact(groups, np.concatenate(short))
    if whole[0].tags is not None:  # a tag may follow from a capital letter, and a mark has one
        found += conflicts(Groups(whole, [text_keys(part, exact=True)[0] for part in whole]))
    else:
        found += conflicts(groups)
    if any(len(part) < len(one) for part, one in zip(parts, whole, strict=True)):
        groups = Groups(parts, [text_keys(part)[0] for part in parts])
    found += near.findings(groups, list(near_pairs(parts, groups.distinct)))
    found += damage.findings(parts)
    if encoder is None:
        found.append(lengths.words(parts))
    else:
        limit = None if encoder.kind.windowed else encoder.max_length  # windows lose nothing
        found += lengths.findings(parts, load_tokenizer(encoder.directory), limit)
    return [*found, *leaks.words(parts[0])]


def _images(whole: list[Part], parts: list[Part], encoder: Encoder | None) -> list[Finding]:
    """Of images all is seen by decoding them, so of the sample alone."""
    seen = [photos.looks(part) for part in parts]
    every = [look for own in seen for look in own]
    groups = Groups(parts, [photos.keys(own) for own in seen])
    found = photos.findings(parts, seen)
    found += [*exact(groups, np.zeros(len(every), bool)), *conflicts(groups)]
    found += near.findings(groups, list(photos.near_pairs(every, groups.distinct)))
    return [*found, *leaks.forms(parts[0], photos.forms(seen[0]))]
