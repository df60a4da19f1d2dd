"""The round-trip certificate: whether an export gives the logits of the run that it is from.

Some real rows go through the run's parameters, through the export read back, and through PyTorch's own class
where that is installed.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxft.base.quiet import quiet
from jaxft.experiment.checkpoint_place import local_checkpoint
from jaxft.experiment.directory import RunDirectory
from jaxft.experiment.encoder import Slicing
from jaxft.experiment.inference import load_run
from jaxft.experiment.measure import own_rows
from jaxft.experiment.provenance import versions
from jaxft.models import Architecture, hf, vocabulary
from jaxft.models.checkpoint import companions, tensors
from jaxft.tasks.contract import HeadFitting

FORMAT = 1
Logits = Callable[[Mapping[str, np.ndarray]], np.ndarray]
_OF_TOKENS = ("input_ids", "segment_ids", "token_type_ids", "positions")


def certify(
    directory: RunDirectory, output: str, whole: Any, unchanged: Collection[str], *, rows: int
) -> dict[str, Any]:
    """Compare, and write certificate.json beside the weights; returns what is in it.

    Args:
      directory: of the run, whose evaluation data the rows are from.
      output: the export.
      whole: the parameters that it was written from.
      unchanged: paths that have the values of the source checkpoint.
      rows: how many at most.

    Raises:
      ValueError: the run's data is gone, or the export cannot be read back.
    """
    model = load_run(directory, Path(output))
    name, split = own_rows(model)
    split = split.take(np.arange(min(rows, len(split.targets))))
    config = model.config.copy_and_resolve_references()
    # Each text in a row of its own, as PyTorch's classes take them.
    with config.unlocked():
        config.data.pack = False
    batches = model.encoder.evaluation(split, config, Slicing())
    architecture = model.architecture
    again, _ = hf.read_params(output, architecture, key=jax.random.key(0))
    run = jax.jit(lambda whole, batch: _logits(architecture.apply(whole, batch)))
    pairs = {"exported": lambda batch: np.asarray(run(again, batch))}
    theirs, missing = _pytorch(architecture, output)
    if theirs is not None:
        pairs["pytorch"] = theirs
    positions = getattr(architecture.limits, "positions", 0)
    found = _compared(batches, positions, lambda batch: np.asarray(run(whole, batch)), pairs)
    if isinstance(model.task, HeadFitting):  # it is beside the model, whose tokens were compared
        scores = jax.jit(
            lambda whole, batch: model.task.predictions(architecture.apply(whole, batch), batch)[
                "logits"
            ]
        )
        of_classifier = {"exported": lambda batch: np.asarray(scores(again, batch))}
        found["classifier"] = _compared(
            batches, positions, lambda batch: np.asarray(scores(whole, batch)), of_classifier
        )
    certificate = {
        "written by": companions.WRITER,
        "format": FORMAT,
        "rows": len(split.targets),
        "of": name,
        **found,
        **({"pytorch": {"not compared": missing}} if missing else {}),
        "untouched tensors": _untouched(directory, architecture, output, unchanged),
        "versions": versions(("jaxft", "jax", "transformers", *(() if missing else ("torch",)))),
    }
    text = json.dumps(certificate, indent=1, ensure_ascii=False)
    (Path(output) / companions.CERTIFICATE).write_text(text + "\n", "utf-8")
    return certificate


def lines(certificate: Mapping[str, Any]) -> list[str]:
    """What the terminal says of it."""
    out = [f"compared on {certificate['rows']} rows of {certificate['of']}"]
    for key, what in (("exported", "the export read back"), ("pytorch", "PyTorch's own class")):
        found = certificate[key]
        if "not compared" in found:
            out.append(f"{what}: not compared, since {found['not compared']}")
        else:
            out.append(
                f"{what}: logits differ by at most {found['largest difference']:.3g} (the largest logit is "
                f"{certificate['largest logit']:.3g}), KL at most {found['largest KL']:.3g}"
            )
    if found := certificate.get("classifier"):
        out.append(
            f"the classifier read back: logits differ by at most "
            f"{found['exported']['largest difference']:.3g} (the largest logit is "
            f"{found['largest logit']:.3g})"
        )
    kept = certificate["untouched tensors"]
    same = sum(entry["identical"] for entry in kept.values())
    out.append(f"{same} of {len(kept)} untouched tensors are the base's, byte for byte")
    return out


def _compared(
    batches: Any, positions: int, run: Logits, others: Mapping[str, Logits]
) -> dict[str, Any]:
    """Over all real rows: the largest logit, and of each other its largest difference and KL.

    positions: of the longest text.
    """
    largest, worst = 0.0, {name: [0.0, 0.0] for name in others}
    for step in range(len(batches)):
        batch = {k: v for k, v in batches[step].items() if k not in ("labels", "weight")}
        real = _real(batch)
        batch = {name: array[real] for name, array in batch.items()}
        if not real.any():
            continue
        batch = _one_text_a_row(batch)
        # Rows are of a few lengths, of which the first that holds a text may be longer than any can be.
        batch |= {name: batch[name][:, :positions] for name in _OF_TOKENS if name in batch}
        side = next((n for n in ("decoder_segment_ids", "segment_ids") if n in batch), None)
        counts = None if side is None else batch[side] > 0
        logits = _counted(run(batch), counts)
        largest = max(largest, float(np.abs(logits).max()))
        for name, other in others.items():
            found = _counted(other(batch), counts)
            worst[name][0] = max(worst[name][0], float(np.abs(found - logits).max()))
            worst[name][1] = max(worst[name][1], float(_divergence(logits, found).max()))
    pairs = {
        name: {"largest difference": difference, "largest KL": divergence}
        for name, (difference, divergence) in worst.items()
    }
    return {"largest logit": largest, **pairs}


def _logits(outputs: Mapping[str, Any]) -> jax.Array:
    """Also of a head that predicts tokens, for a batch as small as these; without a head the tokens."""
    if "tokens" in outputs:
        return outputs["tokens"]
    return outputs["logits"] if "logits" in outputs else vocabulary.logits(dict(outputs))


def _one_text_a_row(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The texts of an example that is made of several, each in a row of its own."""
    if "starts" not in batch or batch["starts"].shape[1] == 1:
        return batch
    segments = batch["segment_ids"]
    own = np.concatenate([segments == text + 1 for text in range(batch["starts"].shape[1])])
    rows = np.tile(np.arange(len(segments)), batch["starts"].shape[1])
    order = np.argsort(~own, axis=1, kind="stable")  # the text's tokens first
    # No wider than its longest text: a model may have fewer positions than all texts have tokens.
    order = order[:, : int(own.sum(1).max())]
    there = np.take_along_axis(own, order, axis=1)
    found = {
        name: np.take_along_axis(batch[name][rows], order, axis=1) * there
        for name in _OF_TOKENS
        if name != "segment_ids"
    }
    starts = np.zeros((len(rows), 1), np.int32)
    return {**found, "segment_ids": there.astype(np.int32), "starts": starts}


def _real(batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which rows of a batch hold an example."""
    return batch["index"].reshape(len(batch["index"]), -1).max(1) >= 0


def _counted(logits: np.ndarray, counts: np.ndarray | None) -> np.ndarray:
    """[N, C] in fp64 of the examples, or of the tokens that are no padding."""
    if counts is not None and logits.ndim == 3 and logits.shape[1] == counts.shape[1] > 1:
        logits = logits[counts]
    return logits.reshape(-1, logits.shape[-1]).astype(np.float64)


def _divergence(logits: np.ndarray, others: np.ndarray) -> np.ndarray:
    """KL of softmax(others) from softmax(logits) [N]; 0 for a single output, which has no softmax."""
    first, second = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (logits, others))
    return np.maximum((np.exp(first) * (first - second)).sum(-1), 0)


def _pytorch(architecture: Architecture, output: str) -> tuple[Logits | None, str]:
    """(logits by PyTorch of a batch, ''), or (None, why not)."""
    try:
        import torch
        import transformers
    except ImportError as error:
        return None, f"{error.name} is not installed"
    cls = getattr(transformers, architecture.exports, None)
    if cls is None:
        return None, f"transformers has no {architecture.exports}"
    transformers.utils.logging.disable_progress_bar()
    # A pooler that the export lacks and nothing reads would be warned of; of what is read, the logits tell.
    with quiet():
        model = cls.from_pretrained(output, dtype=torch.float32).eval()
    kinds = "token_type_ids" in inspect.signature(model.forward).parameters
    # (GPT-2 takes them without having any: it adds the embeddings of the tokens of that number.)
    kinds = kinds and getattr(model.config, "type_vocab_size", 0) > 1
    # XLNet's classifier reads the last token of a row, and its tokenizer pads before the text.
    last = getattr(model.config, "summary_type", "") == "last" and hasattr(
        model, "sequence_summary"
    )

    def logits(batch: Mapping[str, np.ndarray]) -> np.ndarray:
        if "pixel_values" in batch:
            given = {"pixel_values": batch["pixel_values"].transpose(0, 3, 1, 2)}
        else:
            given = {"input_ids": batch["input_ids"], "attention_mask": batch["segment_ids"]}
            given |= {"token_type_ids": batch["token_type_ids"]} if kinds else {}
            decoder = {"decoder_input_ids": "decoder_input_ids",
                       "decoder_attention_mask": "decoder_segment_ids"}  # fmt: skip
            given |= {name: batch[own] for name, own in decoder.items() if own in batch}
        if last:
            given = {name: _at_the_end(x, batch["segment_ids"]) for name, x in given.items()}
        inputs = {name: torch.tensor(array) for name, array in given.items()}
        if architecture.exports.endswith("ForMultipleChoice"):
            inputs = {name: tensor[:, None] for name, tensor in inputs.items()}
        with torch.no_grad():
            return _of_class(model(**inputs))

    return logits, ""


def _at_the_end(rows: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """[N, L] with padding before the text of each row, and not after it."""
    places = np.arange(rows.shape[1]) + (segments > 0).sum(1, keepdims=True)
    return np.take_along_axis(rows, places % rows.shape[1], axis=1)


def _of_class(outputs: Any) -> np.ndarray:
    """What a class of transformers gives, in the form of `_logits`."""
    if "start_logits" in outputs:
        return np.stack([outputs.start_logits.numpy(), outputs.end_logits.numpy()], -1)
    return (outputs.logits if "logits" in outputs else outputs.last_hidden_state).numpy()


def _untouched(
    directory: RunDirectory, architecture: Architecture, output: str, unchanged: Collection[str]
) -> dict[str, dict[str, Any]]:
    """SHA-256 of each untouched tensor of the export, and whether the base's has the same."""
    base = tensors.entries(local_checkpoint(directory.config().model.path))
    found = {}
    for name, entry in tensors.entries(output).items():
        path = next((p for p, stored in architecture.stored.items() if stored.name == name), "")
        if path not in unchanged:
            continue
        prefix = f"{architecture.naming.base}."
        source = next((n for n in (name, name.removeprefix(prefix)) if n in base), None)
        own = _sha256(entry, name)
        same = source is not None and own == _sha256(base[source], source)
        found[name] = {"sha256": own, "identical": same}
    return found


def _sha256(entry: tensors.Entry, name: str) -> str:
    return hashlib.sha256(np.ascontiguousarray(tensors.read(entry, name)).tobytes()).hexdigest()
