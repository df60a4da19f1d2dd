"""Try every model type of transformers that classifies texts, tokens or images through the bridge.

    python benchmarks/every_model.py > docs/models.md
    python benchmarks/every_model.py distilbert convnext

Each class is made tiny from the defaults of its config, by PyTorch, with random weights; then the bridge
computes logits and the gradient of every parameter, takes a step, writes a checkpoint, and transformers
loads it again. Each in a process of its own, of at most LIMIT seconds. Hours for all of them on two cores.
"""

from __future__ import annotations

import collections
import shutil
import subprocess
import sys
import tempfile
from typing import Any

LIMIT = 300
LABELS = 3
KINDS = ("sequence", "token", "image")
# Fields of configs that say how large a model is, and a small value for each.
SMALL: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_size", "emb_dim",
                     "num_features", "hidden_dim_size", "d_embed", "rnn_hidden_size"), 32),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "ffn_dim",
                     "hidden_dim", "n_inner", "moe_intermediate_size", "d_inner",
                     "shared_expert_intermediate_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "encoder_layers", "decoder_layers", "n_layer", "n_layers",
                     "num_layers", "num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads",
                     "n_head", "n_heads", "num_heads", "num_experts", "num_local_experts",
                     "n_routed_experts"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim",
                     "qk_rope_head_dim", "v_head_dim", "patch_size"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_2d_position_embeddings",
                     "image_size"), 64),
    "window_size": 2, "vocab_size": 96, "vocab_size_per_layer_input": 96,
}  # fmt: skip
WIDTHS = (8, 16, 24, 32, 40, 48)


def tiny(config: Any) -> Any:
    """The same config with every size that it has made small; special tokens inside the vocabulary."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            tiny(value)
        elif name in SMALL and type(value) is int:
            setattr(config, name, min(value, SMALL[name]))
        elif isinstance(value, list | tuple) and value and all(type(n) is int for n in value):
            if name in ("hidden_sizes", "embed_dims", "encoder_hidden_sizes"):
                setattr(config, name, list(WIDTHS[: len(value)]))
            elif name in ("depths", "layers_per_stage"):
                setattr(config, name, [1] * len(value))
            elif name == "num_heads":
                setattr(config, name, [2] * len(value))
    if isinstance(kinds := getattr(config, "layer_types", None), list):
        config.layer_types = kinds[: SMALL["num_hidden_layers"]]
    for number, name in enumerate(("pad_token_id", "bos_token_id", "eos_token_id"), 1):
        if isinstance(getattr(config, name, None), int) and getattr(config, name) >= 96:
            setattr(config, name, number)
    if getattr(config, "is_encoder_decoder", False):
        if getattr(config, "decoder_start_token_id", None) is None:
            config.decoder_start_token_id = 0
    return config


def inputs_of(kind: str, config: Any) -> dict[str, Any]:
    """As transformers takes them, as torch tensors."""
    import torch

    torch.manual_seed(1)
    if kind == "image":
        size = getattr(config, "image_size", 64)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return {"pixel_values": torch.randn(2, getattr(config, "num_channels", 3), height, width)}
    ids = torch.randint(6, 90, (2, 16))
    if isinstance(end := getattr(config, "eos_token_id", None), int):
        ids[:, -1] = end
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def attempt(model_type: str, kind: str) -> str:
    """What happened, in a few words: 'works', 'refused: …', or why PyTorch itself cannot."""
    import torch
    import transformers

    autos = {
        "sequence": transformers.AutoModelForSequenceClassification,
        "token": transformers.AutoModelForTokenClassification,
        "image": transformers.AutoModelForImageClassification,
    }
    torch.manual_seed(0)
    try:
        config = tiny(transformers.AutoConfig.for_model(model_type, num_labels=LABELS))
        if kind != "image" and getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = 0
        model = autos[kind].from_config(config, attn_implementation="eager").eval()
        inputs = inputs_of(kind, config)
        logits = model(**inputs).logits
        logits.square().sum().backward()
        model.save_pretrained(folder := tempfile.mkdtemp())
    except Exception as error:
        return f"not by PyTorch at this size: {type(error).__name__}: {one_line(error)}"
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    try:
        return bridged(folder, kind, inputs, logits.detach(), gradients, autos[kind])
    except ValueError as error:
        return f"refused: {one_line(str(error).replace(folder, ''))}"
    finally:
        shutil.rmtree(folder)


def bridged(
    folder: str, kind: str, inputs: dict[str, Any], logits: Any, gradients: Any, auto: Any
) -> str:
    """The same through the bridge."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch

    from jaxft import optim
    from jaxft.models import by_path, hf, load_architecture

    architecture = load_architecture(folder, num_labels=LABELS, head=kind, implementation="bridge")
    params, _ = hf.read_params(folder, architecture, key=jax.random.key(0))
    labels = optim.path_map(lambda path, _: path in architecture.depths, params)
    split = optim.split(params, labels, names=(True, False))
    if kind == "image":
        batch = {"pixel_values": jnp.asarray(inputs["pixel_values"].numpy()).transpose(0, 2, 3, 1)}
    else:
        ids = jnp.asarray(inputs["input_ids"].numpy(), jnp.int32)
        batch = {"input_ids": ids, "segment_ids": ids * 0 + 1, "token_type_ids": ids * 0}

    def value(trained: Any) -> tuple[jax.Array, jax.Array]:
        found = architecture.apply(optim.merge(trained, split[False]), batch)["logits"]
        return (found**2).sum(), found

    (_, found), ours = jax.jit(jax.value_and_grad(value, has_aux=True))(split[True])
    worst = relative(np.asarray(found).reshape(logits.shape), logits.numpy())
    steepest = max(
        relative(np.asarray(x), gradients[path.replace("/", ".")].numpy())
        for path, x in by_path(ours).items()
        if path.replace("/", ".") in gradients
    )
    stepped = jax.tree.map(lambda p, g: p - 1e-3 * g, split[True], ours)
    whole = optim.merge(stepped, split[False])
    names = {index: f"class {index}" for index in range(LABELS)}
    hf.write_checkpoint(
        f"{folder}/out", architecture, whole, id2label=names, source=folder, unchanged=()
    )
    after, report = auto.from_pretrained(f"{folder}/out", output_loading_info=True)
    with torch.no_grad():
        theirs = after.eval()(**inputs).logits.numpy()
    again = np.asarray(architecture.apply(whole, batch)["logits"]).reshape(theirs.shape)
    back = relative(again, theirs)
    lost = len(report["missing_keys"]) + len(report["unexpected_keys"])
    close = worst < 1e-4 and steepest < 1e-3 and back < 1e-4 and not lost
    said = f"logits {worst:.0e}, gradients {steepest:.0e}, reloaded {back:.0e}"
    return f"works ({said})" if close else f"differs: {said}, {lost} keys"


def relative(ours: Any, theirs: Any) -> float:
    """The largest difference over the largest value."""
    return float(abs(ours - theirs).max() / max(abs(theirs).max(), 1e-3))


def one_line(error: object) -> str:
    """Its first 160 characters, for a cell of a table."""
    return " ".join(str(error).split()).replace("|", "/")[:160]


def rows() -> list[tuple[str, str]]:
    """(model type, kind of head) of every class there is."""
    from transformers.models.auto import modeling_auto

    tables: tuple[Any, ...] = (
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    )
    return sorted((name, kind) for kind, table in zip(KINDS, tables, strict=True) for name in table)


def main(wanted: list[str]) -> None:
    """Print the table, a row as soon as it is known, and the sums."""
    import transformers

    print(f"# Model types of transformers {transformers.__version__} through the bridge\n")
    print(
        "Written by `python benchmarks/every_model.py`; differences are relative to the largest value.\n"
    )
    print("| model type | head | result |\n|---|---|---|")
    sums: collections.Counter[str] = collections.Counter()
    for model_type, kind in rows():
        if wanted and model_type not in wanted:
            continue
        command = [sys.executable, "-W", "ignore", __file__, "--one", model_type, kind]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
            lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            result = lines[-1][7:] if lines else f"crashed: {one_line(done.stderr[-300:])}"
        except subprocess.TimeoutExpired:
            result = f"not within {LIMIT} s"
        sums[result.split()[0].rstrip(":")] += 1
        print(f"| {model_type} | {kind} | {result} |", flush=True)
    print("\n" + ", ".join(f"{count} {word}" for word, count in sums.most_common()) + ".")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print("RESULT", attempt(sys.argv[2], sys.argv[3]))
    else:
        main(sys.argv[1:])
