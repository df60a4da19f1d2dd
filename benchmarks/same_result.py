"""Is the result of jaxft that of PyTorch's `transformers.Trainer`? Test loss and accuracy over seeds.

    python benchmarks/same_result.py --model DIR --train train.csv --test test.csv --seeds 12

DIR is a BERT checkpoint; where there is none, `small_bert.py` makes one. Every seed is one run of
`jaxft.train` and several of the Trainer (hf_trainer.py: its defaults, with the same batch size, rates,
warm-up, decay, clipping), which share more and more with it:

    as shipped   nothing but the checkpoint and the data: each has its own batches, head and dropout
    same order   the Trainer gets the batches of the jaxft run, step by step
    same head    and begins with its initial parameters, the new head among them
    no dropout   and neither drops anything: no randomness is left, so the difference is arithmetic

Both results are Hugging Face checkpoints, and one PyTorch function measures both: the mean
cross-entropy over the test rows, from fp32 logits in evaluation mode, and the accuracy. Weights are those
of the last step. Printed is a line a run, and a Markdown table with one row a setting: both means ±
standard deviation over seeds; the mean difference ± its standard error, as of two independent samples;
and the standard error of the differences of equal seeds, where a seed means the same to both.

With --results FILE every run is written down as soon as it is done, and what is there is not run
again: the same command continues. Needs the extra `test`.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import itertools
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import torch
from hf_trainer import Encoded, make_trainer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer
from transformers.utils import logging

from jaxft import train as jaxft_train
from jaxft.experiment.build import build
from jaxft.experiment.prepared import prepare
from jaxft.experiment.steps import devices
from jaxft.models import hf
from jaxft.optim import merge
from jaxft.terminal import config_file

CONFIG = Path(__file__).parent.parent / "configs" / "text_classification.py"
SETTINGS = ("as shipped", "same order", "same head", "no dropout")
NO_DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")


def main() -> None:
    """Run what is missing, seed after seed, and print the table."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    bench, results = Bench(args), Results(args)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        with tempfile.TemporaryDirectory(prefix="same-result-") as folder:
            for setting in args.settings.split(","):
                ours = "jaxft, no dropout" if setting == "no dropout" else "jaxft"
                for side, run in ((ours, bench.jaxft), (setting, bench.trainer)):
                    if not results.has(side, seed):
                        start = time.process_time()
                        measured = run(seed, setting, Path(folder))
                        measured["cpu_seconds"] = round(time.process_time() - start, 1)
                        results.add(side, seed, measured)
        jax.clear_caches()
    print(f"\n{Path(args.train).stem}\n" + "\n".join(results.table(args.settings.split(","))))


class Bench:
    """The two sides of the comparison, on one checkpoint and one data set."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.tokenizer = AutoTokenizer.from_pretrained(args.model)
        self.tokenizer.model_max_length = min(self.tokenizer.model_max_length, 512)
        with open(args.train, newline="", encoding="utf-8") as file:
            names = sorted({row[args.label] for row in csv.DictReader(file)})
        columns = args.text.split(",")
        self.names = names
        self.begun: tuple[int, list[list[int]]] | None = None
        self.train = Encoded(args.train, columns, args.label, names, self.tokenizer)
        self.test = Encoded(args.test, columns, args.label, names, self.tokenizer)

    def jaxft(self, seed: int, setting: str, folder: Path) -> dict[str, float]:
        """One run of `jaxft.train`."""
        workdir = folder / f"jaxft {setting}"
        overrides = [f"--config.{field}={text}" for field, text in self._config(seed, setting)]
        command = ["jaxft.train", f"--config={CONFIG}", f"--workdir={workdir}", *overrides]
        with _quiet():
            status = jaxft_train.main(command)
        assert status == 0, status
        model = AutoModelForSequenceClassification.from_pretrained(workdir / "best")
        measured = self._measure(model)
        own = json.loads((workdir / "summary.json").read_text("utf-8"))["eval"]["loss"]
        assert abs(own - measured["loss"]) < 1e-4, (own, measured)
        return measured

    def trainer(self, seed: int, setting: str, folder: Path) -> dict[str, float]:
        """One run of the Trainer, given what `setting` says of the jaxft run with this seed."""
        args, source, kind = self.args, self.args.model, Trainer
        if setting != "as shipped":
            kind = _with_batches(self._beginning(seed, folder / "initial"))
        if setting in ("same head", "no dropout"):
            source = folder / "initial"
        torch.manual_seed(seed)
        off = dict.fromkeys(NO_DROPOUT, 0.0) if setting == "no dropout" else {}
        model = AutoModelForSequenceClassification.from_pretrained(
            source, num_labels=len(self.names), **off
        )
        own = argparse.Namespace(
            output=str(folder / "trainer"), batch_size=args.batch_size, epochs=args.epochs, lr=args.lr,
            seed=seed, group_by_length=False, layer_decay=1.0,
        )  # fmt: skip
        trainer = make_trainer(own, model, self.tokenizer, self.train, self.test, kind=kind)
        with _quiet():
            trainer.train()
        return self._measure(model)

    def _config(self, seed: int, setting: str) -> list[tuple[str, str]]:
        args = self.args
        return [
            ("model.path", args.model), ("data.train", args.train), ("data.eval", args.test),
            ("data.text", args.text), ("data.label", args.label), ("train.seed", str(seed)),
            ("train.batch_size", str(args.batch_size)), ("train.epochs", str(args.epochs)),
            ("optim.lr", str(args.lr)), ("eval.every", "100%"), ("log.tensorboard", "false"),
            ("checkpoint.every_steps", "1000000"),
            ("model.dropout", "0" if setting == "no dropout" else "none"),
        ]  # fmt: skip

    def _beginning(self, seed: int, output: Path) -> list[list[int]]:
        """Rows of each step of the jaxft run; its initial parameters go to `output`, a checkpoint."""
        if self.begun is None or self.begun[0] != seed:
            config = config_file.load(str(CONFIG), self._config(seed, "same head"))
            prepared = prepare(config)
            assert list(prepared.splits.names) == self.names
            run, state = build(prepared, devices(config), cache=None)
            indices = (run.train_batches[step]["index"] for step in range(prepared.length.steps))
            self.begun = seed, [index[index >= 0].tolist() for index in indices]
            hf.write_checkpoint(
                str(output), prepared.architecture, merge(state.params, state.frozen),
                id2label=dict(enumerate(self.names)), source=self.args.model, unchanged=(),
            )  # fmt: skip
        return self.begun[1]

    @torch.no_grad()
    def _measure(self, model: torch.nn.Module) -> dict[str, float]:
        model.eval()
        rows = sorted((self.test[i] for i in range(len(self.test))), key=_length)  # little padding
        logits = []
        for start in range(0, len(rows), 64):
            batch = self.tokenizer.pad(rows[start : start + 64], return_tensors="pt")
            batch.pop("labels")
            logits.append(model(**batch).logits.float())
        scores, labels = torch.cat(logits).double(), torch.tensor([row["labels"] for row in rows])
        loss = torch.nn.functional.cross_entropy(scores, labels).item()
        return {"loss": loss, "accuracy": (scores.argmax(-1) == labels).double().mean().item()}


def _length(row: dict[str, Any]) -> int:
    return len(row["input_ids"])


def _with_batches(batches: list[list[int]]) -> type[Trainer]:
    """A Trainer whose step i trains on the rows batches[i]."""
    steps = iter(batches)

    class InOrder(Trainer):
        def get_train_dataloader(self) -> torch.utils.data.DataLoader:
            data: Any = self.train_dataset
            per_epoch = math.ceil(len(data) / self.args.train_batch_size)
            loader = torch.utils.data.DataLoader(
                data, batch_sampler=_Epochs(steps, per_epoch), collate_fn=self.data_collator
            )
            return self.accelerator.prepare(loader)

    return InOrder


class _Epochs:
    """A batch sampler: each pass takes the next `per_epoch` batches."""

    def __init__(self, steps: Iterator[list[int]], per_epoch: int):
        self.steps, self.per_epoch = steps, per_epoch

    def __len__(self) -> int:
        return self.per_epoch

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(self.steps, self.per_epoch)


class Results:
    """Losses and accuracies by side and seed; a side is 'jaxft' or a setting of the Trainer."""

    def __init__(self, args: argparse.Namespace):
        self.runs: dict[str, dict[int, dict[str, float]]] = {}
        self.path = Path(args.results) if args.results else None
        about = {k: v for k, v in vars(args).items() if k in _COMPARED}
        if self.path is None or not self.path.exists():
            self._append(about)
            return
        first, *rows = map(json.loads, self.path.read_text("utf-8").splitlines())
        if first != about:
            raise SystemExit(f"{self.path} holds results of {first}, not of {about}")
        for row in rows:
            self.runs.setdefault(row["side"], {})[row["seed"]] = row

    def has(self, side: str, seed: int) -> bool:
        return seed in self.runs.get(side, {})

    def add(self, side: str, seed: int, measured: dict[str, float]) -> None:
        self.runs.setdefault(side, {})[seed] = measured
        self._append({"side": side, "seed": seed, **measured})
        print(f"  {side} seed {seed}: {measured}", flush=True)

    def _append(self, row: dict) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def table(self, settings: Sequence[str]) -> list[str]:
        """Markdown: one row a setting and measure."""
        lines = [
            "| | seeds | jaxft | Trainer | difference | paired |",
            "|---|---|---|---|---|---|",
        ]
        for setting in settings:
            ours = self.runs["jaxft, no dropout" if setting == "no dropout" else "jaxft"]
            peers = self.runs[setting]
            seeds = sorted(ours.keys() & peers.keys())
            for measure in ("loss", "accuracy"):
                a, b = (np.array([runs[seed][measure] for seed in seeds]) for runs in (ours, peers))
                apart, together = standard_errors(a, b)
                paired = "" if setting == "as shipped" else f"± {together:.4f}"
                lines.append(
                    f"| {setting}, {measure} | {len(seeds)} | {_spread(a)} | {_spread(b)} "
                    f"| {a.mean() - b.mean():+.4f} ± {apart:.4f} | {paired} |"
                )
        return lines


def standard_errors(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Of mean(a) - mean(b), [n] each: as two independent samples, and from the n differences."""
    n = len(a)
    if n < 2:
        return math.nan, math.nan
    apart = math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / n)
    return apart, statistics.stdev((a - b).tolist()) / math.sqrt(n)


def _spread(values: np.ndarray) -> str:
    deviation = values.std(ddof=1) if len(values) > 1 else 0.0
    return f"{values.mean():.4f} ± {deviation:.4f}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that both print while they train."""
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        yield


_COMPARED = ("model", "train", "test", "text", "label", "batch_size", "epochs", "lr")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("model", "train", "test"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--text", default="text", help="one or two columns: a,b")
    parser.add_argument("--label", default="label")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--results", default="", help="JSONL file of finished runs")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    args = parser.parse_args()
    unknown = [s for s in args.settings.split(",") if s not in SETTINGS]
    if unknown:
        parser.error(f"unknown setting {unknown[0]!r}; there are {', '.join(SETTINGS)}")
    return args


if __name__ == "__main__":
    main()
