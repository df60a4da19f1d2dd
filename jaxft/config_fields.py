"""Every field of an experiment, once: its default, what it may be, its unit, and what changing it costs.

`default_config()` is built from this table, `validate` checks by it, and `--help` prints it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

from jaxft.tasks.names import METRICS

# Steps are counted in 32 bits on the device.
MOST_STEPS = 2**31 - 1
MANY = 1_000_000


class Need(NamedTuple):
    """What one field asks of another.

    Attributes:
      other: its name.
      values: those that it may have; none given: any that is neither empty nor 0.
      when: values of the field itself that ask for it; none given: all but its default.
    """

    other: str
    values: tuple[Any, ...] = ()
    when: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Field:
    """One setting.

    Attributes:
      name: with its section: 'optim.lr'.
      default: None means: decided from the data or the checkpoint, or not used.
      help: one line.
      low, high: inclusive bounds of a number; what a wrong unit or a slipped digit breaks.
      kind: type of the values; of fields whose default is None it has to be given.
      optional: may be None.
      choices: the only texts allowed.
      also: values allowed besides those of `kind` between the bounds.
      compiled: another value needs another compiled training step; where not, it is an input.
      needs: what other fields have to be beside it.
      form: what a text or the entries of a list are: 'duration', 'path' (of this machine), 'place'
        (a path, a hub id or another data set name), 'column', 'pattern', 'pairs' (checked one by one).
    """

    name: str
    default: Any
    help: str
    low: float = -math.inf
    high: float = math.inf
    _: dataclasses.KW_ONLY
    kind: type = type(None)
    optional: bool = False
    choices: tuple[str, ...] = ()
    also: tuple[Any, ...] = ()
    compiled: bool = False
    needs: tuple[Need, ...] = ()
    form: str = ""

    def __post_init__(self) -> None:
        if self.default is None:
            object.__setattr__(self, "optional", True)
        if self.kind is type(None):
            object.__setattr__(self, "kind", type(self.default))

    @property
    def section(self) -> str:
        return self.name.rpartition(".")[0]

    def allowed(self) -> str:
        """What it may be, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.form == "duration":
            words = "'100 steps', '2 epochs', or '10%' of the run"
        elif MANY <= self.high < math.inf:
            words = f"at least {self.low:g}"
        elif math.isfinite(self.high):
            words = f"between {self.low:g} and {self.high:.7g}"
        else:
            words = _KINDS[self.kind]
        also = [f"{value!r}" for value in self.also] + ["none"] * self.optional
        return ", or ".join([words, *also])


_KINDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a list"
}  # fmt: skip
_DURATION: dict[str, Any] = {"kind": str, "form": "duration"}
_PLANS = ("none", "top_down", "bottom_up", "chain_thaw", "lp_ft", "explicit")
_METRICS = tuple(dict.fromkeys(name for metrics in METRICS.values() for name in metrics))

# fmt: off
FIELDS: tuple[Field, ...] = (
    Field("task", "text_classification", "what is learned", choices=tuple(METRICS), compiled=True),

    Field("model.path", "", "directory in Hugging Face format, or a hub id (the only use of the network)",
          form="place"),
    Field("model.implementation", "auto",
          "bridge: PyTorch's own module, traced (any architecture of transformers); auto: native where "
          "there is such a family", choices=("auto", "native", "bridge"), compiled=True),
    Field("model.depths", (),
          "of a bridged model: ((pattern, depth), …), first match wins, before what its structure says",
          form="pairs", compiled=True),
    Field("model.scratch", False, "true: take the architecture only and initialise every parameter"),
    Field("model.resize_vocabulary", False,
          "of models of text: rows in the embeddings for tokens that were added to the tokenizer",
          compiled=True),
    Field("model.dropout", None, "none keeps the checkpoint's own rates", 0, 0.99, kind=float, compiled=True),
    Field("model.stochastic_depth", None,
          "how often residual branches of the last block are left out of an example, less of earlier ones; "
          "none keeps the checkpoint's own rates", 0, 0.99, kind=float, compiled=True),
    Field("model.dtype", "float32", "compute type; bfloat16 halves activations, parameters stay float32",
          choices=("float32", "bfloat16"), compiled=True),
    Field("model.remat", False,
          "recompute each block in the backward pass: less memory, about 30 % slower", compiled=True),
    Field("model.pooling", "auto",
          "of embeddings: the mean of a text's tokens, or its first; auto: as the checkpoint says, else mean",
          choices=("auto", "mean", "cls"), compiled=True),
    Field("model.batch_stats", "frozen",
          "of batch norms: frozen keeps the checkpoint's; train takes each batch's and moves the kept",
          choices=("frozen", "train"), compiled=True,
          needs=(Need("optim.average", ("none",)), Need("optim.wise_ft", (None,)),
                 Need("optim.schedule_free", (False,)))),

    Field("data.train", "", "file, files (a.csv,b.csv; part-*.csv), image folder, saved dataset, hf:…, "
          "tfds:…, s3://…, https://…; of any a part: a.csv[:80%]",
          form="place"),
    Field("data.mixture", (), "((source, weight), …) in place of data.train: each has its share of every "
          "stretch of the run; an epoch is as many examples as all have together", form="pairs"),
    Field("data.mixture_temperature", None,
          "shares are weight * rows^(1 / temperature): 1 by size, more the more alike; none: the weights",
          0.1, 1000, kind=float, needs=(Need("data.mixture"),)),
    Field("data.stream", None,
          "read data.train from its beginning to its end, so many rows in memory at a time, in random order "
          "among themselves; an epoch is then the whole run; none: every row at random", 1, MOST_STEPS,
          kind=int,
          needs=(Need("data.eval"), Need("train.steps"), Need("data.mixture", ((),)),
                 Need("data.folds", (None,)), Need("data.group", ("",)),
                 Need("data.examples_per_class", (None,)))),
    Field("data.eval", "", "the same; empty: a stratified share of the training data is held out",
          form="place"),
    Field("data.test", "", "the same; used once, at the end, with the best checkpoint", form="place"),
    Field("data.dir", "", "data_dir of TFDS", form="place"),
    Field("data.eval_fraction", 0.1, "share of the training rows held out when data.eval is empty",
          0.001, 0.9),
    Field("data.split_seed", 0, "which rows are held out, and which are the examples_per_class",
          0, MOST_STEPS),
    Field("data.folds", None, "of cross-validation: the held-out rows are one of so many equal parts",
          2, 1000, kind=int),
    Field("data.fold", 0, "which of them, from 0", 0, 999, needs=(Need("data.folds"),)),
    Field("data.group", "", "column of groups (a patient, an author): no group is in two splits"),
    Field("data.text", (),
          "one or two text columns (of choices more); empty: found by their usual names, and said so",
          form="column"),
    Field("data.label", "", "label column; empty: found by its usual names, and said so"),
    Field("data.rename", (), "((old, new), …): columns of every source under other names", form="pairs"),
    Field("data.score_scale", 1.0, "of pairs with a score: what scores are divided by, to be cosines",
          1e-9, MANY),
    Field("data.delimiter", "", "of CSV and TSV: one character; empty: by the suffix, or by the header"),
    Field("data.sample_by", "auto",
          "a row of a .txt file; auto: paragraphs where blank lines separate them, else lines, and said so",
          choices=("auto", "line", "paragraph", "document")),
    Field("data.on_bad_row", "error",
          "a missing label or input: 'error' stops, 'skip' leaves the row out, and says which",
          choices=("error", "skip"), also=("drop",)),  # as skip was called

    Field("data.classes", (), "keep only these label names; empty: all", form="column"),
    Field("data.examples_per_class", None, "keep so many training rows a class (seeded); none: all",
          1, MOST_STEPS, kind=int),
    Field("data.max_length", None, "tokens; longer texts are cut; none: the checkpoint's own limit",
          4, MANY, kind=int),
    Field("data.stride", 128,
          "tokens that two windows of a long text have in common, where it is read in several",
          0, MANY),
    Field("data.prefix", "", "of seq2seq: stands before every text that is read, as 'summarize: '"),
    Field("data.max_target_length", 128, "of seq2seq: tokens of a text to be given, or generated", 4, MANY),
    Field("data.pack", True, "put several short texts into one row: same result, little padding"),
    Field("data.max_shapes", 4, "distinct padded batch shapes, each one compilation", 1, 64),
    Field("data.augment", "none", "of images: flip left-right; crop_flip: random resized crop too",
          choices=("none", "flip", "crop_flip")),
    Field("data.loss_on", "completions", "of instruction: which tokens are learned; all: prompts too",
          choices=("completions", "all")),
    Field("data.augment_policy", "none", "of images: two random operations, or one of any strength",
          choices=("none", "randaugment", "trivialaugment")),
    Field("data.color_jitter", 0.0,
          "of images: brightness, contrast and saturation change by up to this share", 0, 1),
    Field("data.erase", 0.0, "of images: probability of a random rectangle without content", 0, 1),
    Field("data.mixup", 0.0, "of images: each is mixed with another, by a share of Beta(a, a) with this a; "
          "0: not at all", 0, 1000),
    Field("data.cutmix", 0.0, "of images: a box of each, of a share of Beta(a, a) with this a, is another's; "
          "0: not at all", 0, 1000),
    Field("data.mix_probability", 1.0, "of an image to be mixed at all, where that is asked for", 0, 1),
    Field("data.mix_switch", 0.5, "probability of cutmix in place of mixup, where both are asked for", 0, 1,
          needs=(Need("data.mixup"), Need("data.cutmix"))),
    Field("data.token_dropout", 0.0,
          "of texts: probability of each training token to be hidden", 0, 0.9),
    Field("data.word_swap", 0.0,
          "of texts: probability of each training word to change places with the next", 0, 0.9),
    Field("data.mask_share", 0.15, "of masked_lm: share of the tokens that are to be guessed", 1e-3, 0.9),
    Field("data.mask_whole_words", False, "of masked_lm: choose words, with all of their tokens"),
    Field("data.cache", "", "where tokenised text is kept; empty: WORKDIR/cache", form="path"),
    Field("data.workers", 1, "threads that prepare batches; more helps when images are decoded", 1, 256),

    Field("train.batch_size", 32,
          "examples of one optimizer update, over all devices and microbatches", 1, MANY),
    Field("train.epochs", 3.0, "length of the run; or give train.steps", 1e-9, MANY, optional=True),
    Field("train.steps", None, "length of the run in optimizer updates", 1, MOST_STEPS, kind=int),
    Field("train.seed", 0, "data order, dropout, the new head", 0, MOST_STEPS),
    Field("train.accumulate", 1, "microbatches of one update: less memory, the same result", 1, MANY,
          compiled=True),
    Field("train.label_smoothing", 0.0, "share of the target spread over all classes", 0, 0.99,
          compiled=True),
    Field("train.class_weights", (),
          "((label, weight), …): what its examples count in the loss, others 1; of several labels, what it "
          "counts where it applies; balanced: in inverse proportion to how many have it", form="pairs",
          also=("balanced",)),
    Field("train.focal_gamma", 0.0,
          "focal loss (Lin et al. 2017): what is predicted well counts less, by this power; 0: not at all",
          0, 10, compiled=True, needs=(Need("train.label_smoothing", (0.0,)),)),
    Field("train.r_drop", 0.0,
          "R-Drop (Liang et al. 2021): what the divergence of two passes with different dropout counts; two "
          "forward and backward passes a step", 0, 100, compiled=True,
          needs=(Need("model.batch_stats", ("frozen",)),)),
    Field("train.temperature", 0.05, "of embeddings: similarities are divided by it, where texts are told "
          "from the others of a batch", 1e-4, 100, compiled=True),
    Field("train.preference_loss", "dpo",
          "of preference: dpo_norm is dpo over the mean token of an answer; ipo aims at a fixed margin",
          choices=("dpo", "dpo_norm", "ipo"), compiled=True,
          needs=(Need("train.label_smoothing", (0.0,), when=("ipo",)),)),
    Field("train.beta", 0.1, "of preference: how little the model may move away from what it was",
          1e-4, 1000, compiled=True),
    Field("train.log_every", 10, "steps between logged training metrics", 1, MOST_STEPS),
    Field("train.compile_cache", "~/.cache/jaxft", "compiled programs, reused by later runs; empty: none",
          form="path"),

    Field("distill.teacher", "",
          "a finished run, a directory in Hugging Face format or a hub id: a model whose outputs for the "
          "training rows are learned beside the labels; read once, before the first step", form="place",
          needs=(Need("data.augment", ("none",)), Need("data.augment_policy", ("none",)),
                 Need("data.color_jitter", (0.0,)), Need("data.erase", (0.0,)),
                 Need("data.mixup", (0.0,)), Need("data.cutmix", (0.0,)),
                 Need("data.token_dropout", (0.0,)), Need("data.word_swap", (0.0,)),
                 Need("data.stream", (None,)))),
    Field("distill.weight", 0.5,
          "what the distance from the teacher counts, the loss of the labels counts the rest; 0: as "
          "without a teacher", 0, 1, compiled=True, needs=(Need("distill.teacher"),)),
    Field("distill.temperature", 2.0,
          "of classes and labels: the logits of both models are divided by it before they are compared",
          1e-2, 100, compiled=True, needs=(Need("distill.teacher"),)),

    Field("optim.lr", 5e-5,
          "peak learning rate of the head; layer_decay and lr_mult scale it per parameter", 0, 10),
    Field("optim.optimizer", "adamw", "sgd has momentum b1; lion wants about a tenth of adamw's lr",
          choices=("adamw", "sgd", "lion"), compiled=True),
    Field("optim.schedule", "linear", "after warm-up: linear or cosine to end_lr, or constant",
          choices=("linear", "cosine", "constant"), compiled=True),
    Field("optim.warmup", "10%", "how long the rate rises from 0 to lr", **_DURATION),
    Field("optim.end_lr", 0.0, "share of lr at the last step", 0, 1),
    Field("optim.weight_decay", 0.01,
          "decoupled; never on biases and norms, nor on frozen parameters", 0, 10),
    Field("optim.b1", 0.9, "decay of the first moment; the momentum of sgd", 0, 0.9999999),
    Field("optim.b2", None, "decay of the second moment; none: 0.999 for adamw, 0.99 for lion",
          0, 0.9999999, kind=float),
    Field("optim.eps", 1e-8, "added to the root of the second moment", 1e-20, 1),
    Field("optim.clip", 1.0, "global norm of the trainable gradients; none: no clipping",
          1e-12, 1e12, optional=True),
    Field("optim.layer_decay", 1.0,
          "each block further from the head learns this factor slower (0.65–0.95)", 1e-3, 1),
    Field("optim.freeze_below", None,
          "k: the embeddings and the first k blocks stay as they are; 'all': everything but the head",
          0, MANY, kind=int, also=("all",)),
    Field("optim.frozen", (), "patterns of parameter paths that stay as they are (see `describe`)",
          form="pattern"),
    Field("optim.lr_mult", (), "((pattern, factor), …): first match wins, on top of layer_decay",
          form="pairs"),
    Field("optim.groups", (),
          "((pattern, {'lr': …, 'weight_decay': …, 'schedule': …, 'optimizer': …}), …): first match "
          "wins; what a group does not name is the run's own", form="pairs",
          needs=(Need("optim.unfreeze", ("none",)), Need("optim.decay_towards", ("zero",)))),
    Field("optim.decay_towards", "zero", "pretrained is L2-SP: one more copy of what is trained",
          choices=("zero", "pretrained"), compiled=True),
    Field("optim.unfreeze", "none", "plan of gradual unfreezing; lp_ft is the head first, then all",
          choices=_PLANS, needs=(Need("optim.unfreeze_at", when=("explicit",)),)),
    Field("optim.unfreeze_every", None,
          "time between two stages of the plan; none: so that all fit, the last twice as long",
          1, **_DURATION),
    Field("optim.unfreeze_at", (),
          "of 'explicit': ((duration, (depth, …)), …), see `describe` for depths", form="pairs",
          needs=(Need("optim.unfreeze", ("explicit",)),)),
    Field("optim.sam_radius", None,
          "sharpness-aware: gradients are taken so far uphill; a second one a step", 1e-6, 10, kind=float),
    Field("optim.schedule_free", False,
          "with schedule 'constant': weights are averaged instead; uses b1",
          needs=(Need("optim.schedule", ("constant",)), Need("optim.average", ("none",)),
                 Need("optim.unfreeze", ("none",)), Need("optim.groups", ((),)),
                 Need("optim.optimizer", ("adamw", "sgd")), Need("optim.b1")), compiled=True),
    Field("optim.average", "none",
          "the weights that count: as they are; their moving average (ema, one more copy of what is "
          "trained); the mean of those since average_from (swa)", choices=("none", "ema", "swa"),
          compiled=True),
    Field("optim.average_decay", 0.999, "of ema: the last 1 / (1 - decay) steps count, or a tenth of all",
          0, 0.9999999),
    Field("optim.average_from", "75%", "of swa: time from the start", **_DURATION),
    Field("optim.wise_ft", None,
          "share of the trained weights; the rest is pretrained (heads: trained)", 0, 1, kind=float),

    Field("eval.every", "1 epochs", "time between evaluations; the last step always has one",
          1, **_DURATION),
    Field("eval.batch_size", 64, "examples", 1, MANY),
    Field("eval.metric", "accuracy", "of the task; chooses the best checkpoint and stops early",
          choices=_METRICS),
    Field("eval.max_answer_length", 30, "tokens that the answer to a question may have", 1, MANY),
    Field("eval.patience", None, "stop after so many evaluations without improvement; none: never",
          1, MOST_STEPS, kind=int),
    Field("eval.min_delta", 0.0, "what counts as an improvement of the metric", 0, MANY),

    Field("eval.generate", 0, "of seq2seq: rows, evenly chosen, whose texts are generated and scored too",
          0, MANY),
    Field("eval.beams", 1, "of generated texts, also by predict; 1: the likeliest token at each step", 1, 64),
    Field("eval.length_penalty", 1.0, "of beams: scores are over length to this power; more: longer texts",
          -10, 10),
    Field("eval.early_stopping", False, "of beams: stop as soon as as many texts have ended"),

    Field("parallel.mode", "auto", "jit: one device; shard: jit over a mesh; pmap; auto: jit or shard",
          choices=("auto", "jit", "shard", "pmap"), compiled=True),
    Field("parallel.data", -1, "devices along the batch; -1: all that are left", 1, MANY, also=(-1,),
          compiled=True),
    Field("parallel.fsdp", 1, "devices that share the parameters and the batch", 1, MANY, compiled=True),
    Field("parallel.tensor", 1, "devices that share each matrix product", 1, MANY, compiled=True),

    Field("checkpoint.every_steps", 500, "steps between saves; also at every evaluation and on SIGTERM",
          1, MOST_STEPS),
    Field("checkpoint.keep", 1, "latest checkpoints kept, besides the best one", 1, MANY),

    Field("log.tensorboard", True, "event files in WORKDIR/tensorboard"),
)
# fmt: on
BY_NAME = {field.name: field for field in FIELDS}
SECTIONS = tuple(dict.fromkeys(field.section for field in FIELDS if field.section))
