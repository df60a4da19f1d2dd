"""Every field of an experiment, once: its default, its unit, and what changing it costs.

A config file is Python with `get_config(arg=None)` that starts from `default_config()` and changes a
few fields; `terminal/config_file.py` reads it and the command line. Here are the fields and what they
mean; `config_check.py` says what they may be. This is not a place for logic: below the commands,
functions take plain arguments.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict


def default_config() -> ConfigDict:
    """The whole experiment with its defaults. `None` means: decided from the data or the checkpoint."""
    c = ConfigDict(
        type_safe=False
    )  # types are checked by `validate`, which can say what is allowed
    c.task = "text_classification"  # or 'image_classification'

    c.model = ConfigDict(type_safe=False)
    c.model.path = ""  # directory in Hugging Face format, or a hub id (the only use of the network)
    c.model.scratch = False  # True: take the architecture only and initialise every parameter
    c.model.dropout = None  # float; None keeps the checkpoint's own rates
    c.model.dtype = (
        "float32"  # compute type; 'bfloat16' halves activations, parameters stay float32
    )
    c.model.remat = (
        False  # recompute each block in the backward pass: less memory, about 30 % slower
    )

    c.data = ConfigDict(type_safe=False)
    c.data.train = ""  # FILE.csv|.tsv|.jsonl|.parquet, image folder, saved dataset, hf:…, tfds:…
    c.data.eval = ""  # the same; empty: a stratified share of the training data is held out
    c.data.test = ""  # the same; used once, at the end, with the best checkpoint
    c.data.dir = ""  # data_dir of TFDS
    c.data.eval_fraction = 0.1  # share of the training rows held out when data.eval is empty
    c.data.split_seed = 0  # which rows are held out, and which are the examples_per_class
    c.data.text = ()  # one or two text columns; empty: found by their usual names, and said so
    c.data.label = ""  # label column; empty: found by its usual names, and said so
    c.data.delimiter = ""  # of CSV and TSV: one character; empty: by the suffix, or by the header
    c.data.on_bad_row = (
        "error"  # a missing label or input: 'error' stops, 'drop' leaves the row out
    )
    c.data.classes = ()  # keep only these label names; empty: all
    c.data.examples_per_class = None  # int; keep so many training rows a class (seeded); None: all
    c.data.max_length = None  # tokens; longer texts are cut; None: the checkpoint's own limit
    c.data.pack = True  # put several short texts into one row: same result, little padding
    c.data.max_shapes = 4  # distinct padded batch shapes, each one compilation
    c.data.augment = "none"  # images: 'flip' (left-right) or 'crop_flip' (random resized crop too)
    c.data.cache = ""  # where tokenised text is kept; empty: WORKDIR/cache
    c.data.workers = 1  # threads that prepare batches; more helps when images are decoded

    c.train = ConfigDict(type_safe=False)
    c.train.batch_size = 32  # examples of one optimizer update, over all devices and microbatches
    c.train.epochs = 3.0  # length of the run; or give train.steps
    c.train.steps = None  # optimizer updates
    c.train.seed = 0  # data order, dropout, the new head
    c.train.accumulate = 1  # microbatches of one update: less memory, the same result
    c.train.label_smoothing = 0.0  # share of the target spread over all classes
    c.train.log_every = 10  # steps between logged training metrics
    c.train.compile_cache = "~/.cache/jaxft"  # compiled programs, reused by later runs; empty: none

    c.optim = ConfigDict(type_safe=False)
    c.optim.lr = (
        5e-5  # peak learning rate of the head; layer_decay and lr_mult scale it per parameter
    )
    c.optim.optimizer = "adamw"  # or 'sgd' (momentum b1), 'lion' (about a tenth of AdamW's lr)
    c.optim.schedule = "linear"  # after warm-up: 'linear' or 'cosine' to end_lr, or 'constant'
    c.optim.warmup = "10%"  # duration: '100 steps', '1 epochs', '10%' of the run
    c.optim.end_lr = 0.0  # share of lr at the last step
    c.optim.weight_decay = 0.01  # decoupled; never on biases and norms, nor on frozen parameters
    c.optim.b1 = 0.9
    c.optim.b2 = 0.999
    c.optim.eps = 1e-8
    c.optim.clip = 1.0  # global norm of the trainable gradients; None: no clipping
    c.optim.layer_decay = (
        1.0  # each block further from the head learns this factor slower (0.65–0.95)
    )
    c.optim.freeze_below = None  # int k: the embeddings and the first k blocks stay as they are
    c.optim.frozen = ()  # patterns of parameter paths that stay as they are (see `describe`)
    c.optim.lr_mult = ()  # ((pattern, factor), …): first match wins, on top of layer_decay
    # ((pattern, {'lr': …, 'weight_decay': …, 'schedule': …, 'optimizer': …}), …): first match wins;
    # what a group does not name is the run's own.
    c.optim.groups = ()
    c.optim.decay_towards = "zero"  # 'pretrained': L2-SP; keeps one more copy of what is trained
    c.optim.unfreeze = "none"  # plan of gradual unfreezing; 'lp_ft' is the head first, then all
    c.optim.unfreeze_every = "1 epochs"  # duration between two stages of the plan
    c.optim.unfreeze_at = ()  # for 'explicit': ((duration, (depth, …)), …), see `describe` for depths
    c.optim.sam_radius = (
        None  # sharpness-aware: gradients are taken so far uphill; a second one a step
    )
    c.optim.schedule_free = False  # with schedule 'constant': weights are averaged instead; uses b1
    # What is evaluated and exported: the weights as they are; their moving average ('ema'), one more
    # copy of what is trained; or the mean of those since average_from ('swa').
    c.optim.average = "none"
    # Of 'ema': about the last 1 / (1 - decay) steps count, but no more than the last tenth of the run.
    c.optim.average_decay = 0.999
    c.optim.average_from = "75%"  # of 'swa': duration from the start
    c.optim.wise_ft = None  # share of the trained weights; the rest is pretrained (heads: trained)

    c.eval = ConfigDict(type_safe=False)
    c.eval.every = "1 epochs"  # duration between evaluations; the last step always has one
    c.eval.batch_size = 64  # examples
    c.eval.metric = "accuracy"  # chooses the best checkpoint and stops early; 'loss' is minimised
    c.eval.patience = None  # int; stop after so many evaluations without improvement; None: never
    c.eval.min_delta = 0.0  # what counts as an improvement of the metric

    c.parallel = ConfigDict(type_safe=False)
    c.parallel.mode = (
        "auto"  # 'jit' one device; 'shard' jit over a mesh; 'pmap'; auto: jit or shard
    )
    c.parallel.data = -1  # devices along the batch; -1: all that are left
    c.parallel.fsdp = 1  # devices that share the parameters and the batch
    c.parallel.tensor = 1  # devices that share each matrix product

    c.checkpoint = ConfigDict(type_safe=False)
    c.checkpoint.every_steps = 500  # also saved at every evaluation and on SIGTERM
    c.checkpoint.keep = 1  # latest checkpoints kept, besides the best one

    c.log = ConfigDict(type_safe=False)
    c.log.tensorboard = True  # event files in WORKDIR/tensorboard
    c.lock()
    return c


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """`{'optim.lr': …}` of a nested config; tuples and None are leaves."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat.update({f"{key}.{name}": leaf for name, leaf in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> ConfigDict:
    """The nested config that `flatten` took apart."""
    config = default_config()
    for field, value in flat.items():
        section, _, name = field.rpartition(".")
        (config[section] if section else config)[name] = value
    return config


def to_json(config: ConfigDict) -> dict[str, Any]:
    """Plain JSON values of a config; `from_json` reads them back."""
    return json.loads(json.dumps(config.to_dict()))


def from_json(raw: Mapping[str, Any]) -> ConfigDict:
    """The config a run directory holds. Unknown fields raise ValueError (another version's run)."""
    values = {field: as_tuples(value) for field, value in flatten(raw).items()}
    known = flatten(default_config())
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(
            f"config.json has fields this version of jaxft does not know: {', '.join(unknown)}"
        )
    # Before the field existed, what is held out followed train.seed: such a run keeps its rows.
    values.setdefault("data.split_seed", values.get("train.seed", 0))
    return unflatten({**known, **values})


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """'field: old -> new' for every field that differs."""
    before, after = flatten(to_json(old)), flatten(to_json(new))
    return [f"{f}: {before[f]!r} -> {after[f]!r}" for f in before if before[f] != after[f]]


def duration_steps(
    field: str, value: str | int | float, *, steps_per_epoch: float, total_steps: int
) -> int:
    """A duration in optimizer updates: '100' or '100 steps', '2 epochs', '10%' or 0.1 of the run.

    Raises:
      ValueError: neither of the three.
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*(%|steps?|epochs?)?\s*", str(value))
    try:
        number, unit = float(match[1]), match[2] or ""  # type: ignore[index]
    except (TypeError, ValueError):
        unit, number = "bad", 0.0
    if unit.startswith("step") or (not unit and number == int(number) and "." not in str(value)):
        return int(number)
    if unit.startswith("epoch"):
        return round(number * steps_per_epoch)
    if unit in ("", "%") and number <= (100 if unit else 1):
        # Rounded up, as the Hugging Face Trainer does with its warm-up ratio.
        return math.ceil(round(number / (100 if unit else 1) * total_steps, 6))
    raise ValueError(
        f"config.{field}={value!r} is not a duration: give '100 steps', '2 epochs', or '10%' of the run"
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' when something is close, else ''."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def as_tuples(value: Any) -> Any:
    return tuple(as_tuples(v) for v in value) if isinstance(value, list | tuple) else value
