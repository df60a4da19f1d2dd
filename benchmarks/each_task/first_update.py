"""Is the first update the peer's? Loss and gradient of jaxft's first batch, by jaxft and by the peer itself.

    python benchmarks/each_task/first_update.py --work WORK --tasks preference,instruction

In one process, so for a Python that has jaxft and the peers. jaxft begins a run as its user would, without
dropout; the peer is given its first parameters, head included, and the rows of its first batch, and makes of
them what it makes while it trains: tokens, padding, loss. Of `causal_lm` and `masked_lm` there are no such
rows (windows lie elsewhere, other tokens are masked): tests/tasks/test_language_modelling.py compares these.
Nor of `multi_label`, whose peer names its outputs by the rows that it is given: test_multi_label.py does.

Printed are both losses, and the largest difference of a gradient as a share of the largest gradient of its
tensor; tensors whose gradients are below a thousandth of the largest of all are held to that instead.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import optax
import peer
import peer_libraries
import torch
import transformers
from settings import SETTINGS, data_file, read_rows

from jaxft.api import make_config
from jaxft.experiment.build import build
from jaxft.experiment.prepared import prepare
from jaxft.experiment.steps import devices
from jaxft.models import by_path, hf
from jaxft.optim import merge

HERE = Path(__file__).resolve().parent
TASKS = {
    "preference": peer_libraries.preference,
    "instruction": peer_libraries.instruction,
    "embedding": peer_libraries.embedding,
    "seq2seq": peer.seq2seq,
    "question_answering": peer.question_answering,
    "multiple_choice": peer.multiple_choice,
}


def main() -> None:
    """One line a task."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--rows", type=int, default=8, help="of the batch")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    for task in args.tasks.split(","):
        with tempfile.TemporaryDirectory() as folder:
            own_loss, own, rows = of_jaxft(args, task, Path(folder))
            loss, other = of_peer(task, Path(folder), rows)
        # A model without a head may be written with the name of its base or without.
        own, other = (
            {name.removeprefix("bert."): x for name, x in side.items()} for side in (own, other)
        )
        assert own.keys() == other.keys(), own.keys() ^ other.keys()
        largest = max(np.abs(x).max() for x in other.values())
        worst = max(
            (np.abs(own[name] - x).max() / max(np.abs(x).max(), 1e-3 * largest), name)
            for name, x in other.items()
        )
        print(
            f"{task}: loss {own_loss:.7f}, {loss:.7f}; largest difference of a gradient "
            f"{worst[0]:.1e} ({worst[1]}, of {len(own)} tensors)",
            flush=True,
        )


def of_jaxft(args, task: str, folder: Path) -> tuple[float, dict[str, np.ndarray], list[dict]]:
    """(loss, the gradient by name and in the layout of the checkpoint, the rows of the batch).

    The gradient is the momentum of SGD after an update. Leaves the first parameters in `folder`.
    """
    setting = SETTINGS[task]
    start = args.work / "start" / setting.start
    fields = {
        "model.path": str(start), "model.dropout": 0.0, "train.seed": 0, "train.steps": 1,
        "data.train": str(data_file(args.work, task, "train")),
        "data.eval": str(data_file(args.work, task, "test")), "data.max_length": setting.length,
        "data.max_shapes": 1, "data.cache": str(folder / "cache"), "eval.every": "100%",
        "train.batch_size": args.rows, "train.compile_cache": "", "parallel.mode": "jit",
        "optim.optimizer": "sgd", "optim.clip": None, "optim.weight_decay": 0.0, **setting.flags,
    }  # fmt: skip
    prepared = prepare(make_config(HERE.parents[1] / "configs" / f"{task}.py", fields))
    parallel = devices(prepared.config)
    run, state = build(prepared, parallel, cache=None)
    params = merge(state.params, state.frozen)
    batch = run.train_batches[0]
    names = {i: str(i) for i in range(prepared.architecture.num_labels)}
    hf.write_checkpoint(
        str(folder / "first"), prepared.architecture, params, id2label=names, source=str(start),
        unchanged=(), problem_type=prepared.task.problem_type,
    )  # fmt: skip
    state, metrics = run.stages.at(0).program(state, parallel.put(batch))
    momentum = parallel.unreplicate(optax.tree_utils.tree_get(state.opt_state, "trace"))
    hf.write_checkpoint(
        str(folder / "gradient"), prepared.architecture, momentum, id2label=names,
        source=str(start), unchanged=(), problem_type=prepared.task.problem_type,
    )  # fmt: skip
    assert len(by_path(momentum)) == len(by_path(params))
    rows = read_rows(data_file(args.work, task, "train"))
    found = [rows[i] for i in batch["index"].ravel() if i >= 0]
    loss = float(parallel.unreplicate(metrics)["loss"])
    return loss, tensors(folder / "gradient"), found


def of_peer(task: str, folder: Path, rows: list[dict]) -> tuple[float, dict[str, np.ndarray]]:
    """(loss, gradient by name) of the peer's own collator and loss."""
    data = folder / "batch.jsonl"
    with open(data, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    args = argparse.Namespace(
        model=str(folder / "first"), train=str(data), test=str(data), output=str(folder / "peer"),
        seed=0,
    )  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    setting = SETTINGS[task]
    trainer: Any = TASKS[task](setting, args, tokenizer)
    trainer.args.per_device_train_batch_size = trainer._train_batch_size = len(rows)
    (inputs,) = trainer.get_train_dataloader()
    trainer.model.eval()  # no dropout
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    model = trainer.model[0].auto_model if task == "embedding" else trainer.model
    gradients = {
        name: value.grad.numpy()
        for name, value in model.named_parameters()
        if value.grad is not None
    }
    return float(loss.detach()), gradients


def tensors(checkpoint: Path) -> dict[str, np.ndarray]:
    """Of a checkpoint, by name."""
    from safetensors.numpy import load_file

    return load_file(checkpoint / "model.safetensors")


if __name__ == "__main__":
    main()
