"""From the config to one decision per parameter: whether it trains and when, how fast, where it lives."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from typing import Any

from jaxft import optim
from jaxft.config import ConfigDict
from jaxft.experiment.decisions import Decision, Decisions
from jaxft.experiment.ideas import groups, unfreezing
from jaxft.experiment.length import Length
from jaxft.models import SENTENCE, Architecture, has_batch_norms
from jaxft.models.cuts import left_whole, param_specs
from jaxft.optim.hints import widened

# Rates above these are rarely meant: ten times the usual highest of each.
_HIGH_RATES = {"adamw": 0.05, "lion": 0.01, "sgd": 5.0}


def decide(config: ConfigDict, architecture: Architecture, length: Length) -> Decisions:
    """Settle everything in `config.optim` and `config.parallel` that speaks of single parameters.

    Raises:
      ValueError: a pattern that matches nothing, more blocks to freeze than there are, or a plan of
        unfreezing that does not fit the run.
    """
    c, abstract, depths = config.optim, architecture.abstract, architecture.depths
    blocks = architecture.num_blocks
    below = {None: -1, "all": blocks}.get(c.freeze_below, c.freeze_below)
    if below > blocks:
        raise ValueError(
            f"config.optim.freeze_below={below}, but the model has {blocks} blocks: "
            f"{blocks} freezes everything but the head"
        )
    named = _at(c.frozen, abstract, "frozen")
    frozen = {path for path, depth in depths.items() if depth <= below or named[path]}
    multipliers = optim.by_path(_rules(c.lr_mult, abstract, "lr_mult", default=1.0))
    decayed, leaves = optim.by_path(optim.decay_mask(abstract)), optim.by_path(abstract)
    plan = unfreezing.make_plan(config, depths, frozen, length)
    p = config.parallel
    placements = optim.by_path(
        param_specs(abstract, architecture.tensor_rules, fsdp=p.fsdp, tensor=p.tensor)
    )
    labels = _rules(groups.rules(c), dict.fromkeys(depths, 0), "groups", default=groups.REST)
    rows = []
    for path, depth in depths.items():
        own = groups.settings(c, labels[path])
        rows.append(
            Decision(
                path=path,
                shape=tuple(leaves[path].shape),
                depth=depth,
                stages=() if path in frozen else unfreezing.stages_of(plan, depth),
                lr_scale=c.layer_decay ** (blocks + 1 - depth) * multipliers[path],
                group=labels[path],
                decays=bool(decayed[path]),
                placement=placements[path],
                **own,
            )
        )
    return Decisions(tuple(rows), plan, tuple(_warnings(config, architecture, frozen)))


def frozen_blocks(architecture: Architecture, still: Collection[str]) -> int:
    """The depth up to which everything is in `still`; -1 when some of the stem is trainable.

    Up to there the forward pass needs no dropout, and the backward pass does not reach it.
    """
    depths, blocks = architecture.depths, architecture.num_blocks
    lowest = min((depths[path] for path in depths if path not in still), default=blocks + 1)
    return min(lowest - 1, blocks)


def moving_statistics(
    config: ConfigDict, architecture: Architecture, decisions: Decisions, stage: int
) -> frozenset[str]:
    """Paths of what has moved by the end of a stage without being trained: batch statistics, a fitted head.

    With `model.batch_stats='train'` they are those above the depth up to which everything was frozen:
    what lies below is a fixed feature extractor.
    """
    fitted = {path for path in architecture.statistics if path.startswith(f"{SENTENCE}/")}
    if config.model.batch_stats != "train":
        return frozenset(fitted)
    still = (decisions.frozen_in(n) | decisions.held_in(n) for n in range(stage + 1))
    lowest = min(frozen_blocks(architecture, paths) for paths in still)
    return frozenset(path for path, depth in architecture.statistics.items() if depth > lowest)


def _rules(rules: Any, tree: Any, field: str, *, default: Any) -> Any:
    """`match_rules`, naming the config field whose pattern is wrong."""
    try:
        return optim.match_rules(rules, tree, default=default)
    except ValueError as error:
        raise ValueError(f"config.optim.{field}: {error}") from error


def _at(patterns: tuple[str, ...], tree: Any, field: str) -> dict[str, bool]:
    return optim.by_path(_rules([(p, True) for p in patterns], tree, field, default=False))


def _warnings(config: ConfigDict, architecture: Architecture, frozen: set[str]) -> Iterator[str]:
    """Allowed, but probably not what was meant."""
    c, depths = config.optim, architecture.depths
    head = {path for path, depth in depths.items() if depth == architecture.num_blocks + 1}
    if len(frozen) == len(depths):
        yield "every parameter is frozen: there is nothing to train"
    elif head and head <= frozen:  # a tied unembedding is a table of the stem
        yield "the head is frozen: a newly initialised one will stay random"
    if still := sorted(frozen & architecture.grown.keys()):
        yield (
            f"model.resize_vocabulary: {', '.join(still)} frozen, so the rows of new tokens, too, stay "
            "as they are drawn"
        )
    if (
        has_batch_norms(architecture)
        and config.model.scratch
        and config.model.batch_stats == "frozen"
    ):
        yield (
            "model.scratch with model.batch_stats='frozen': batch norms keep the mean 0 and the "
            "variance 1 that they are initialised with; give 'train'"
        )
    yield from _uncut(config.parallel.tensor, architecture)
    yield from _read_twice(config.data)
    yield from _too_wide(c, list(depths))
    for pattern, factor in c.lr_mult:
        matched = {p for p, yes in _at((pattern,), architecture.abstract, "lr_mult").items() if yes}
        if matched <= frozen:
            yield f"optim.lr_mult {pattern!r} x {factor:g} only matches frozen parameters"
    high = _HIGH_RATES[c.optimizer]
    if c.lr > high:
        yield (
            f"optim.lr={c.lr:g} is far above what fine-tuning with {c.optimizer} takes "
            f"(rarely above {high:g}): the weights will be lost"
        )


def _uncut(tensor: int, architecture: Architecture) -> Iterator[str]:
    """What the tensor axis would cut and does not divide."""
    whole = left_whole(architecture.abstract, architecture.tensor_rules, tensor)
    if not whole:
        return
    path, fitting = next(iter(whole.items()))
    more = f" and {len(whole) - 1} more" if len(whole) > 1 else ""
    hint = f"; {fitting[-1]} does" if fitting else ""
    yield (
        f"parallel.tensor={tensor} does not divide the heads or rows of {path}{more}, whole on each of "
        f"these devices{hint}"
    )


def _read_twice(c: ConfigDict) -> Iterator[str]:
    """Data that is evaluated by the same name as what was learned from, or chosen by."""

    def is_same(first: str, second: str) -> bool:
        return bool(first and second) and os.path.realpath(first) == os.path.realpath(second)

    for name, source in (("data.eval", c.eval), ("data.test", c.test)):
        if any(is_same(source, learned) for learned in (c.train, *(s for s, _ in c.mixture))):
            yield f"{name}={source!r} is what is trained on: its metrics say nothing of other data"
    if is_same(c.test, c.eval):
        yield f"data.test={c.test!r} is data.eval, which chooses the checkpoint: its metrics flatter"


def _too_wide(c: ConfigDict, paths: list[str]) -> Iterator[str]:
    """Patterns that name block 1 and also match blocks 10 and 11."""
    pairs = {"frozen": c.frozen} | {
        field: [pattern for pattern, _ in c[field]] for field in ("lr_mult", "groups")
    }
    for field, patterns in pairs.items():
        for pattern in patterns:
            if narrower := widened(pattern, paths):
                yield (
                    f"optim.{field} {pattern!r} also matches longer numbers that begin alike; for "
                    f"that one alone write {narrower!r}"
                )
