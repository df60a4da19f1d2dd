"""The peer of vs_setfit.py: one run of the `setfit` library, in an environment of its own.

python benchmarks/setfit_trainer.py MODEL train.csv test.csv SEED ITERATIONS output.json
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
import time


def main(model_path: str, train: str, test: str, seed: str, iterations: str, output: str) -> None:
    """Train with the library's defaults, and write what `vs_setfit.py` compares."""
    import sklearn.metrics
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    rows, held_out = _read(train), _read(test)
    model = SetFitModel.from_pretrained(model_path)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, batch_size=16, num_epochs=1, seed=int(seed), report_to="none",
            num_iterations=int(iterations) or None, save_strategy="no", show_progress_bar=False,
        )  # fmt: skip
        trainer = Trainer(model=model, args=arguments, train_dataset=Dataset.from_list(rows))
        texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
        started = time.perf_counter()
        trainer.train_embeddings(texts, labels, args=arguments)
        seconds = time.perf_counter() - started
        trainer.train_classifier(texts, labels, args=arguments)
    pairs = trainer.st_trainer.state.global_step * 16
    predicted = [str(label) for label in model.predict([row["text"] for row in held_out])]
    truth = [row["label"] for row in held_out]
    found = {
        "accuracy": sklearn.metrics.accuracy_score(truth, predicted),
        "f1_macro": sklearn.metrics.f1_score(truth, predicted, average="macro"),
        "examples_per_second": pairs / seconds,
        "seconds": {"train": seconds},
    }
    with open(output, "w", encoding="utf-8") as file:
        json.dump(found, file)


def _read(path: str) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main(*sys.argv[1:])
