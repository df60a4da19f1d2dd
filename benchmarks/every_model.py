"""Try every model type of transformers that has a head which the bridge knows, and write docs/models.md.

    python benchmarks/every_model.py --results models.jsonl > docs/models.md
    python benchmarks/every_model.py --results models.jsonl distilbert convnext:image > docs/models.md

Each class is made tiny from the defaults of its config, by PyTorch, with random weights; then the bridge
computes logits and the gradient of every parameter, takes a step, writes a checkpoint, and transformers
loads it again. A row is a process of its own, forked where the libraries are imported already, of at most
SECONDS of CPU and BYTES of memory. What is in the file of results is not tried again unless it is named.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

# As in the tests: compiling is most of the work here, and no program runs more than twice.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1"
)
os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
import torchax  # noqa: E402, F401
import transformers  # noqa: E402
from tiny_configs import VOCABULARY, tiny_configs  # noqa: E402
from transformers.models.auto import modeling_auto  # noqa: E402

from jaxft import optim  # noqa: E402
from jaxft.models import by_path, hf, load_architecture  # noqa: E402
from jaxft.models.bridge.architecture import BridgedArchitecture  # noqa: E402

SECONDS, BYTES, LONGEST = 60, 6 * 2**30, 1800.0
MOST = 10**8  # parameters of a model that is tried
LABELS = 3
# The kinds in the order in which they are tried: every model type has its first before any its second.
KINDS: dict[str, tuple[Any, Any]] = {
    "sequence": (
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        transformers.AutoModelForSequenceClassification,
    ),
    "image": (
        modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        transformers.AutoModelForImageClassification,
    ),
    "token": (
        modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        transformers.AutoModelForTokenClassification,
    ),
    "causal": (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, transformers.AutoModelForCausalLM),
    "seq2seq": (
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        transformers.AutoModelForSeq2SeqLM,
    ),
    "masked": (modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, transformers.AutoModelForMaskedLM),
    "question": (
        modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
        transformers.AutoModelForQuestionAnswering,
    ),
    "choice": (
        modeling_auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
        transformers.AutoModelForMultipleChoice,
    ),
}
OUTPUTS = {"sequence": LABELS, "image": LABELS, "token": LABELS, "question": 2, "choice": 1}
CHOICES = 3
PYTORCH = "not by PyTorch"


def inputs_of(kind: str, config: Any) -> dict[str, Any]:
    """As transformers takes them, as torch tensors."""
    torch.manual_seed(1)
    if kind == "image":
        size = getattr(config, "image_size", 64)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return {"pixel_values": torch.randn(2, getattr(config, "num_channels", 3), height, width)}
    ids = torch.randint(6, VOCABULARY - 6, (2, CHOICES, 16) if kind == "choice" else (2, 16))
    if isinstance(end := getattr(config, "eos_token_id", None), int):
        ids[..., -1] = end
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if kind == "seq2seq":
        inputs["decoder_input_ids"] = torch.randint(6, VOCABULARY - 6, (2, 10))
    return inputs


def attempt(model_type: str, kind: str) -> str:
    """What happened, in a few words: 'works', 'refused: …', or why PyTorch itself cannot."""
    folder, reasons = tempfile.mkdtemp(), []
    try:
        for make in tiny_configs(transformers.CONFIG_MAPPING[model_type]):
            try:
                reference = by_pytorch(kind, make, folder)
                break
            except Exception as error:
                traceback.print_exc()
                reasons.append(f"{type(error).__name__}: {one_line(error)}")
        else:
            return f"{PYTORCH}: {reasons[0]}"
        return bridged(folder, kind, *reference)
    except ValueError as error:
        traceback.print_exc()
        return f"refused: {one_line(str(error).replace(folder, ''))}"
    finally:
        shutil.rmtree(folder)


def by_pytorch(kind: str, make: Callable[[], Any], folder: str) -> tuple[Any, Any, Any]:
    """Saves a model in `folder`; returns inputs, logits and the gradient of each parameter by name."""
    torch.manual_seed(0)
    auto, config = KINDS[kind][1], make()
    config.architectures, config.use_cache = [], False
    text = config.get_text_config()
    if kind in OUTPUTS:
        config.num_labels = OUTPUTS[kind]
    if kind == "causal" and getattr(config, "is_decoder", None) is False:
        config.is_decoder = True
    if getattr(config, "is_encoder_decoder", False):
        config.decoder_start_token_id = 0
    if kind != "image" and getattr(text, "pad_token_id", None) is None:
        config.pad_token_id = text.pad_token_id = 0
    with torch.device("meta"):
        size = sum(x.numel() for x in auto.from_config(copy.deepcopy(config)).parameters())
    if size > MOST:
        raise ValueError(f"it has {size:,} parameters")
    model = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():  # so that nothing is 0, and no two experts score the same
        for x in model.parameters():
            x.add_(0.02 * torch.randn_like(x)) if x.requires_grad else None
    inputs = inputs_of(kind, config)
    logits = logits_of(model(**inputs))
    logits.square().sum().backward()
    model.save_pretrained(folder)
    again = logits_of(auto.from_pretrained(folder, attn_implementation="eager").eval()(**inputs))
    if not torch.allclose(again, logits, rtol=1e-4, atol=1e-5):
        raise ValueError("it does not load what it saved")
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return inputs, logits.detach(), gradients


def bridged(folder: str, kind: str, inputs: dict[str, Any], logits: Any, gradients: Any) -> str:
    """The same through the bridge."""
    import jax
    import numpy as np

    labels = OUTPUTS.get(kind, 0)
    architecture = load_architecture(folder, num_labels=labels, head=kind, implementation="bridge")
    params, _ = hf.read_params(folder, architecture, key=jax.random.key(0))
    trains = optim.path_map(lambda path, _: path in architecture.depths, params)
    split = optim.split(params, trains, names=(True, False))
    batch = batch_of(inputs)

    def value(trained: Any) -> tuple[jax.Array, jax.Array]:
        found = architecture.apply(optim.merge(trained, split[False]), batch)["logits"]
        return (found**2).sum(), found

    step = jax.jit(jax.value_and_grad(value, has_aux=True))
    (_, found), ours = step(split[True])
    worst = relative(np.asarray(found).reshape(logits.shape), logits.numpy())
    # As the module has them: files may hold them in pieces, as experts one by one.
    assert isinstance(architecture, BridgedArchitecture)
    mine = architecture.built.join(
        {path.replace("/", "."): torch.from_numpy(np.array(x)) for path, x in by_path(ours).items()}
    )
    steepest = max(relative(mine[name].numpy(), x.numpy()) for name, x in gradients.items())
    stepped = jax.tree.map(lambda p, g: np.asarray(p - 1e-3 * g), split[True], ours)
    (_, again), _ = step(stepped)
    names = {index: f"class {index}" for index in range(labels)}
    whole = optim.merge(stepped, split[False])
    of_task = "single_label_classification" if labels > 1 else None
    hf.write_checkpoint(
        f"{folder}/out", architecture, whole, id2label=names, source=folder, unchanged=(),
        problem_type=of_task,
    )  # fmt: skip
    after, report = KINDS[kind][1].from_pretrained(f"{folder}/out", output_loading_info=True)
    with torch.no_grad():
        theirs = logits_of(after.eval()(**inputs)).numpy()
    back = relative(np.asarray(again).reshape(theirs.shape), theirs)
    lost = sorted((*report["missing_keys"], *report["unexpected_keys"]))
    close = worst < 1e-4 and steepest < 1e-3 and back < 1e-4 and not lost
    said = f"logits {worst:.0e}, gradients {steepest:.0e}, reloaded {back:.0e}"
    return f"works ({said})" if close else f"differs: {said}, keys {lost[:2]}"


def batch_of(inputs: dict[str, Any]) -> dict[str, Any]:
    """As jaxft has it; choices stand one after the other in a row."""
    import jax.numpy as jnp

    if "pixel_values" in inputs:
        return {"pixel_values": jnp.asarray(inputs["pixel_values"].numpy()).transpose(0, 2, 3, 1)}
    ids = jnp.asarray(inputs["input_ids"].numpy(), jnp.int32)
    width, texts = ids.shape[-1], ids[0].size // ids.shape[-1]
    ids = ids.reshape(len(ids), -1)
    segments = jnp.broadcast_to(1 + jnp.arange(ids.shape[1]) // width, ids.shape)
    starts = jnp.broadcast_to(jnp.arange(texts) * width, (len(ids), texts))
    batch = {"input_ids": ids, "segment_ids": segments, "token_type_ids": ids * 0, "starts": starts}
    if "decoder_input_ids" in inputs:
        ids = jnp.asarray(inputs["decoder_input_ids"].numpy(), jnp.int32)
        batch |= {"decoder_input_ids": ids, "decoder_segment_ids": ids * 0 + 1}
    return batch


def logits_of(outputs: Any) -> Any:
    """Of a model of questions [B, L, 2]."""
    if "start_logits" in outputs:
        return torch.stack((outputs.start_logits, outputs.end_logits), -1)
    return outputs.logits


def relative(ours: Any, theirs: Any) -> float:
    """The largest difference over the largest value."""
    return float(abs(ours - theirs).max() / max(abs(theirs).max(), 1e-3))


def one_line(error: object) -> str:
    """Its first 200 characters, for a cell of a table."""
    return " ".join(str(error).split()).replace("|", "/")[:200]


def rows() -> list[tuple[str, str]]:
    """(model type, kind of head) of every class there is, the first kind of each type before others."""
    kinds = collections.defaultdict(list)
    for kind, (names, _) in KINDS.items():
        for model_type in names:
            kinds[model_type].append(kind)
    numbered = [
        (order, name, kind)
        for name, found in kinds.items()
        for order, kind in enumerate(found)
        if name in transformers.CONFIG_MAPPING
    ]
    return [
        (name, kind) for _, name, kind in sorted(numbered, key=lambda row: (row[0] > 0, row[1]))
    ]


def limited(model_type: str, kind: str, log: str, limit: int) -> tuple[str, float]:
    """`attempt` in a process forked for it, and its seconds of CPU; what it prints goes to `log`."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    if not (child := os.fork()):
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        try:
            result = attempt(model_type, kind)
        except BaseException as error:
            traceback.print_exc()
            result = f"fails: {type(error).__name__}: {one_line(error)}"
        os.write(writing, result.encode())
        os._exit(0)
    os.close(writing)
    given_up = not select.select([reading], [], [], LONGEST)[0]
    if given_up:
        os.kill(child, signal.SIGKILL)
    result = os.read(reading, 2**16).decode()
    os.close(reading)
    _, status, usage = os.wait4(child, 0)
    if not result:
        ended = signal.Signals(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else status
        known: dict[int, str] = {
            signal.SIGXCPU: f"not within {limit} s of CPU",
            signal.SIGKILL: "was killed",
        }
        result = f"fails: {known.get(int(ended), ended)}"
    return result, usage.ru_utime + usage.ru_stime


def main() -> None:
    """Try what is not known yet, then print the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--results", required=True, help="JSON lines, read and appended to")
    parser.add_argument("--seconds", type=float, default=0, help="begin no row after these")
    parser.add_argument("--limit", type=int, default=SECONDS, help="seconds of CPU for a row")
    parser.add_argument("--logs", help="a folder for what each row printed")
    parser.add_argument("again", nargs="*", help="model types, or TYPE:KIND, to try again")
    options = parser.parse_args()
    found: dict[tuple[str, str], str] = {}
    if os.path.exists(options.results):
        with open(options.results) as file:
            for row in map(json.loads, file):
                found[row["model_type"], row["kind"]] = row["result"]
    started = time.monotonic()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with open(options.results, "a") as file:
        for name, kind in rows():
            named = not {name, f"{name}:{kind}"}.isdisjoint(options.again)
            late = options.seconds and time.monotonic() - started > options.seconds
            if late or not (named or (not options.again and (name, kind) not in found)):
                continue
            log = os.path.join(options.logs, f"{name}-{kind}.txt") if options.logs else os.devnull
            result, seconds = limited(name, kind, log, options.limit)
            found[name, kind] = result
            row = {"model_type": name, "kind": kind, "result": result, "cpu": round(seconds, 1)}
            print(json.dumps(row), file=file, flush=True)
            print(f"{seconds:5.0f} s  {name}:{kind}  {result}", file=sys.stderr, flush=True)
    print(page(found))


def page(found: dict[tuple[str, str], str]) -> str:
    """docs/models.md: what works, by type and kind; why not; and what PyTorch itself cannot do here."""
    known = {row: found[row] for row in rows() if row in found}
    tried = {row: result for row, result in known.items() if not result.startswith(PYTORCH)}
    works = {row for row, result in tried.items() if result.startswith("works")}
    types = sorted({name for name, _ in tried})
    whole = sum(
        all((name, kind) in works for kind in KINDS if (name, kind) in tried) for name in types
    )
    lines = [
        f"# Model types of transformers {transformers.__version__} through the bridge",
        "",
        "Written by `python benchmarks/every_model.py`: each class is made tiny from its default config with"
        " random weights; its logits and the gradient of every parameter through the bridge are held to"
        " PyTorch's (1e-4 and 1e-3 of the largest value), a step is taken, and transformers loads what is"
        " exported and gives the same logits again. How these rows came about is in BUILD_NOTES.md.",
        "",
        f"**Of the {len(tried)} classes that PyTorch builds tiny and runs on a CPU, {len(works)} work"
        f" ({len(works) / max(len(tried), 1):.1%}); of their {len(types)} model types {whole} do so with"
        f" every head that was tried ({whole / max(len(types), 1):.1%}).**"
        f" {len(known) - len(tried)} other classes are at the end;"
        f" {len(rows()) - len(known)} were not tried.",
        "",
        "`+` works, `-` does not; nothing: no such class, not tried, or at the end.",
        "",
        f"| model type | {' | '.join(KINDS)} |",
        f"|---|{'---|' * len(KINDS)}",
    ]
    for name in types:
        cells = [
            "+" if (name, kind) in works else "-" if (name, kind) in tried else " "
            for kind in KINDS
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "## What does not work, and why", "", *listed(tried, works)]
    lines += ["", "## What PyTorch itself does not do with these configs and inputs", ""]
    lines += [
        "No default config, or none that is tiny and valid was found; a package that is not installed; inputs"
        " besides tokens or pixels; or more than 100 M parameters at any of the sizes tried.",
        "",
    ]
    others = {row: result for row, result in known.items() if row not in tried}
    return "\n".join([*lines, *listed(others, set())])


def listed(found: dict[tuple[str, str], str], left_out: set[tuple[str, str]]) -> list[str]:
    """A line for each row, those of one model type together."""
    reasons = collections.defaultdict(list)
    for (name, kind), result in sorted(found.items()):
        if (name, kind) not in left_out:
            reasons[name, result.removeprefix(f"{PYTORCH}: ")].append(kind)
    return [f"- {name} ({', '.join(kinds)}): {why}" for (name, why), kinds in reasons.items()]


if __name__ == "__main__":
    main()
