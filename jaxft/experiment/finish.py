"""The end of a run: export the best checkpoint, test it, and write down what happened."""

from __future__ import annotations

import platform
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jaxft.config import default_config, to_json
from jaxft.data.inputs import KINDS
from jaxft.experiment.card import model_card
from jaxft.experiment.compilation import release_free_memory
from jaxft.experiment.directory import RunDirectory
from jaxft.experiment.encoder import Batches
from jaxft.experiment.evaluation import Evaluation, Predictions, evaluate
from jaxft.experiment.prepared import Prepared
from jaxft.experiment.provenance import versions
from jaxft.experiment.session import Memory, Session
from jaxft.experiment.table import parameter_rows
from jaxft.experiment.weights import best_weights, weights_of
from jaxft.models import TextLimits, hf
from jaxft.models.checkpoint import sentence_transformers, to_write
from jaxft.tasks.contract import fits, fitted
from jaxft.tasks.table import TASKS
from jaxft.training.parallel import Parallel
from jaxft.training.step import TrainState

_VERSIONS = ("jaxft", "jax", "flax", "optax", "orbax-checkpoint", "transformers")


def weights_if_best(session: Session, state: TrainState, memory: Memory) -> Any:
    """The weights of the last state where it is the best; else None, and `finish` reads them."""
    last = memory.best_step == session.run.steps_done(state)
    return weights_of(session.run, state) if last else None


def finish(session: Session, whole: Any, memory: Memory, last_step: int) -> None:
    """Export, test, report, summarise. Repeating it after a kill gives the same files.

    Args:
      whole: the best weights, or None to read them from their checkpoint. Not the state: by now the
        caller holds its slots no longer, which weigh twice as much.
    """
    run, logs, clock = session.run, session.logs, session.clock
    prepared, best = run.prepared, memory.best_step
    assert best is not None  # the last step is always evaluated
    release_free_memory()
    if whole is None:
        whole = best_weights(run, session.checkpoints, best)
    never_trained = run.stages.saved_at(best).frozen
    # First what cannot be had again, then what is made of it; last what declares the run finished.
    with clock.time("save"):
        export(prepared, run.parallel, whole, str(session.directory.best),
               unchanged=never_trained, lead=logs.enabled, metrics=memory.best_metrics)  # fmt: skip
        if logs.enabled:
            session.directory.remove_unfinished_exports()
    tested = None
    if run.shared.test_batches is not None:
        with clock.time("eval"):
            tested = _test(session, whole, run.shared.test_batches, memory)
    if not logs.enabled:
        return
    rows = parameter_rows(prepared, never_trained)
    session.directory.write_json("parameters.json", rows)
    summary = _summary(session, memory, last_step, tested)
    summary["parameters"]["trained"] = sum(row["size"] for row in rows if row["trained"])
    page = report(session.directory, summary)
    session.directory.write_json("summary.json", summary)
    logs.say(f"best step {best}: model in {session.directory.best}, report in {page}")


def report(directory: RunDirectory, summary: dict[str, Any] | None = None) -> Path:
    """Write report.html; `summary` in place of summary.json, which is written after it."""
    from jaxft.analysis.report import write_report  # imports matplotlib: 0.4 s and 40 MB

    view, defaults = TASKS[directory.config().task].view, to_json(default_config())
    return write_report(directory.path, view=view, defaults=defaults, summary=summary)


def export(
    prepared: Prepared,
    parallel: Parallel,
    whole: Any,
    output: str,
    *,
    unchanged: frozenset[str],
    lead: bool,
    metrics: Mapping[str, Any] | None = None,
    origin: str = "",
    dtype: str = "",
    max_shard_bytes: int = hf.MAX_SHARD_BYTES,
) -> None:
    """Write a Hugging Face checkpoint; what was frozen keeps the source's bytes.

    A sharded parameter is gathered when its turn comes to be written: beyond its own part of the model a
    process holds one parameter at a time.

    Args:
      whole: the model's tree, placed by `parallel`.
      output: directory; replaced as a whole.
      unchanged: paths that never trained.
      lead: whether this process writes; all must call.
      metrics: of these weights on the evaluation data: for the card, and what was fitted on it.
      origin: see `model_card`.
      dtype, max_shard_bytes: see `hf.write_checkpoint`.
    """
    same = _from_source(prepared, unchanged)
    if not lead:
        hf.join_writing(
            prepared.architecture,
            whole,
            source=prepared.directory,
            unchanged=same,
            fetch=parallel.whole,
            max_shard_bytes=max_shard_bytes,
            dtype=dtype,
        )
        return
    hf.write_checkpoint(
        output,
        prepared.architecture,
        whole,
        id2label=prepared.task.id2label(prepared.splits.names),
        problem_type=prepared.task.problem_type,
        source=prepared.directory,
        unchanged=same,
        fetch=parallel.whole,
        max_shard_bytes=max_shard_bytes,
        dtype=dtype,
        card=model_card(prepared, unchanged, metrics, origin),
        fitted=fits(prepared.task, metrics),
        files=KINDS[prepared.task.inputs].companions(prepared.directory),
        beside=_beside(prepared),
    )


def copied(prepared: Prepared, unchanged: frozenset[str], dtype: str = "") -> Collection[str]:
    """Paths of which `export` needs no values: it copies their tensors from the source."""
    same = _from_source(prepared, unchanged)
    return to_write.copied(prepared.architecture, prepared.directory, same, dtype)


def _from_source(prepared: Prepared, unchanged: frozenset[str]) -> frozenset[str]:
    """Of paths that never trained those with the source's values."""
    return frozenset() if prepared.config.model.scratch else unchanged


def _beside(prepared: Prepared) -> dict[str, Any]:
    """How sentence-transformers is to make vectors of texts, where that is what was learned."""
    pooling, limits = getattr(prepared.task, "pooling", ""), prepared.architecture.limits
    if not pooling or not isinstance(limits, TextLimits):
        return {}
    length = prepared.config.data.max_length or limits.positions
    unit = getattr(prepared.task, "normalize", "yes") == "yes"
    return sentence_transformers.layout(pooling, prepared.architecture.hf_config, length, unit=unit)


def write_predictions(
    directory: RunDirectory, name: str, rows: Predictions, result: Evaluation
) -> None:
    """predictions/NAME.jsonl: every row; and each detail in a file NAME.DETAIL.json."""
    directory.write_rows(f"predictions/{name}.jsonl", rows.rows(result))
    for detail, value in result.details.items():
        directory.write_json(f"predictions/{name}.{detail}.json", value)


def _test(session: Session, whole: Any, batches: Batches, memory: Memory) -> Evaluation:
    run, prepared = session.run, session.run.prepared
    # What was fitted on the evaluation data is used here as on any other data.
    task = fitted(prepared.task, memory.best_metrics or {}, prepared.splits.names)
    split = prepared.splits.test
    assert split is not None and memory.best_step is not None
    started = time.perf_counter()
    result = evaluate(
        task, run.shared.eval_step, run.evaluated(whole), batches, run.parallel, split,
        writer=run.writer, threads=run.prepared.config.data.workers,
    )  # fmt: skip
    if session.logs.enabled:
        write_predictions(
            session.directory, "test", Predictions(task, split, run.shared.encoder), result
        )
        seconds = time.perf_counter() - started
        session.logs.evaluation(
            memory.best_step, "test", result.metrics, best=False, seconds=seconds
        )
    return result


def _summary(
    session: Session, memory: Memory, last_step: int, tested: Evaluation | None
) -> dict[str, Any]:
    run, clock = session.run, session.clock
    prepared, splits = run.prepared, run.prepared.splits
    plan, depths = getattr(run.train_batches, "plan", None), prepared.architecture.depths
    examples = last_step / prepared.length.epoch * prepared.epoch_examples
    return {
        "task": prepared.config.task,
        "model": prepared.config.model.path,
        "labels": list(splits.names),
        "data": {
            "train": round(examples) if splits.blocks else len(splits.train.targets),
            "eval": len(splits.eval.targets),
            "test": len(splits.test.targets) if splits.test else 0,
        },
        "steps": last_step,
        "epochs": last_step / prepared.length.epoch,
        "best_step": memory.best_step,
        "best_metric": {"name": prepared.config.eval.metric, "value": memory.best_value},
        "stopped_early": memory.stopped_early,
        "eval": memory.best_metrics,
        "test": tested.metrics if tested else None,
        "seconds": {k: round(v, 3) for k, v in {"total": clock.total, **clock.seconds}.items()},
        "examples_per_second": examples / max(session.logs.seconds, 1e-9),
        "waiting_share": session.logs.waited / max(session.logs.seconds, 1e-9),
        "parameters": dict(prepared.decisions.totals),
        "versions": {"python": platform.python_version(), **versions(_VERSIONS)},
        "device": run.parallel.summary,
        # Of a head that is fitted no first value counts.
        "initialised": [p for p in run.initialised if run.shared.fitting is None or p in depths],
        "fitted": [
            p for p in run.initialised if run.shared.fitting is not None and p not in depths
        ],
        "shapes": [str(shape) for shape in plan.shapes] if plan else [],
        "padding_efficiency": plan.efficiency if plan else None,
    }
