"""Tiny models of transformers and what PyTorch makes of them; run as a process of its own.

    python -m tests.bridge.torch_reference FOLDER NAME…

Importing torchax renames a backend of torch, so the reference is not computed beside it. In FOLDER/NAME is
then a checkpoint, in FOLDER/NAME.npz inputs, logits, and the gradient of each parameter.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

LABELS = 3
_BASE = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 48, "max_position_embeddings": 40}  # fmt: skip
# name -> (model type, kind of head, what differs from the defaults)
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "distilbert": ("distilbert", "sequence", {
        "vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48,
        "max_position_embeddings": 40}),
    "llama": ("llama", "sequence", {**_BASE, "num_key_value_heads": 2, "pad_token_id": 1}),
    "llama-unpadded": ("llama", "sequence", {**_BASE, "num_key_value_heads": 4}),
    "deberta-v2": ("deberta-v2", "sequence", {
        **_BASE, "relative_attention": True, "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"}),
    "electra": ("electra", "token", {**_BASE, "embedding_size": 16}),
    "convnext": ("convnext", "image", {
        "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "patch_size": 2, "image_size": 32,
        "num_channels": 3, "layer_scale_init_value": 0.5}),
    "regnet": ("regnet", "image", {
        "embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1],
        "groups_width": 8}),
    "t5": ("t5", "sequence", {
        "vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
        "num_decoder_layers": 2, "decoder_start_token_id": 0}),
    "bart": ("bart", "sequence", {
        "vocab_size": 60, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48, "max_position_embeddings": 40}),
    "gpt2": ("gpt2", "causal", {
        "vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}),
    "mixtral": ("mixtral", "causal", {
        **_BASE, "num_key_value_heads": 2, "num_local_experts": 4, "pad_token_id": 0}),
    "albert": ("albert", "masked", {**_BASE, "embedding_size": 16, "pad_token_id": 0}),
    "pegasus": ("pegasus", "seq2seq", {
        "vocab_size": 60, "d_model": 32, "encoder_layers": 2, "decoder_layers": 1,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48, "max_position_embeddings": 40}),
    "albert-question": ("albert", "question", {**_BASE, "embedding_size": 16, "pad_token_id": 0}),
    "gpt2-question": ("gpt2", "question", {
        "vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}),
    "bart-question": ("bart", "question", {
        "vocab_size": 60, "d_model": 32, "encoder_layers": 2, "decoder_layers": 1,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48, "max_position_embeddings": 40}),
    "t5-question": ("t5", "question", {
        "vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
        "num_decoder_layers": 1, "decoder_start_token_id": 0}),
    "xlnet-question": ("xlnet", "question", {
        "vocab_size": 60, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}),
    "albert-choice": ("albert", "choice", {
        **_BASE, "embedding_size": 16, "pad_token_id": 0, "type_vocab_size": 2}),
    "mpnet-choice": ("mpnet", "choice", _BASE),
    "xlnet": ("xlnet", "sequence", {
        "vocab_size": 60, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}),
    "xlnet-choice": ("xlnet", "choice", {
        "vocab_size": 60, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}),
    "timm-resnet": ("timm", "image", {"architecture": "resnet10t", "model_args": {}}),
    "timm-swin": ("timm", "image", {
        "architecture": "swin_tiny_patch4_window7_224", "model_args": {
            "img_size": 32, "window_size": 4, "embed_dim": 16, "depths": [1, 1, 2, 1],
            "num_heads": [1, 2, 2, 4]}}),
    "timm-vit": ("timm", "image", {
        "architecture": "vit_tiny_patch16_224", "model_args": {
            "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}}),
}  # fmt: skip
DECAY = 0.5
OUTPUTS = {"question": 2, "choice": 1}  # of these kinds, whatever is learned; of others LABELS
CHOICES = 3


def inputs_of(kind: str, pad: int, end: int | None = None) -> dict[str, np.ndarray]:
    """A batch as transformers takes it: texts padded on the right, images with channels first.

    end: the last token of each text; None: any.
    """
    rng = np.random.default_rng(1)
    if kind == "image":
        return {"pixel_values": rng.normal(size=(3, 3, 32, 32)).astype(np.float32)}
    shape = (3, CHOICES, 12) if kind == "choice" else (3, 12)
    lengths = np.resize([12, 7, 3, 9], shape[:-1])[..., None]
    mask = (np.arange(12) < lengths).astype(np.int64)
    ids = rng.integers(6, 60, mask.shape)
    if end is not None:
        ids[np.arange(3), mask.sum(1) - 1] = end
    inputs = {"input_ids": np.where(mask, ids, pad), "attention_mask": mask}
    if kind == "seq2seq":
        inputs["decoder_attention_mask"] = (np.arange(8) < np.array([[5], [8], [2]])).astype(
            np.int64
        )
        inputs["decoder_input_ids"] = rng.integers(6, 60, (3, 8))
    return inputs


def padded_before(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with padding on the left."""
    mask = inputs["attention_mask"]
    places = (np.arange(mask.shape[-1]) + mask.sum(-1, keepdims=True)) % mask.shape[-1]
    return {key: np.take_along_axis(x, places, -1) for key, x in inputs.items()}


def make(folder: Path, name: str) -> None:
    """A checkpoint of random weights that are not small, so that every part of it shows."""
    import torch
    import transformers

    model_type, kind, settings = CASES[name]
    torch.manual_seed(0)
    if model_type == "timm":
        model = of_timm(folder / name, settings)
        x = torch.from_numpy(inputs_of("image", 0)["pixel_values"])
        logits = model(x)
        (logits * torch.from_numpy(cotangent(tuple(logits.shape)))).sum().backward()
        gradients = {f"gradient {key}": p.grad.numpy() for key, p in model.named_parameters()}
        np.savez(
            folder / f"{name}.npz", logits=logits.detach().numpy(), pixel_values=x, **gradients
        )
        return
    config = transformers.AutoConfig.for_model(
        model_type, num_labels=OUTPUTS.get(kind, LABELS), **settings
    )
    autos = {
        "sequence": transformers.AutoModelForSequenceClassification,
        "token": transformers.AutoModelForTokenClassification,
        "image": transformers.AutoModelForImageClassification,
        "causal": transformers.AutoModelForCausalLM,
        "masked": transformers.AutoModelForMaskedLM,
        "seq2seq": transformers.AutoModelForSeq2SeqLM,
        "question": transformers.AutoModelForQuestionAnswering,
        "choice": transformers.AutoModelForMultipleChoice,
    }
    model = autos[kind].from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for _, x in model.named_parameters():
            x.add_(torch.randn_like(x) * (0.1 if x.ndim > 1 else 0.05))
        for tensor_name, x in model.named_buffers():
            if tensor_name.endswith("running_mean"):
                x.normal_(0, 0.1)
            elif tensor_name.endswith("running_var"):
                x.uniform_(0.5, 1.5)
    model.save_pretrained(folder / name)
    pad = getattr(config, "pad_token_id", None)
    ends = getattr(config, "is_encoder_decoder", False) and kind == "sequence"
    end = config.eos_token_id if ends else None
    inputs = inputs_of(kind, 0 if pad is None else pad, end)
    left = getattr(config, "summary_type", "") == "last" and kind in ("sequence", "choice")
    given = padded_before(inputs) if left else inputs
    tensors = {key: torch.from_numpy(x) for key, x in given.items()}
    if pad is None and kind == "sequence":  # one at a time, without padding
        lengths = tensors["attention_mask"].sum(1).tolist()
        rows = [
            model(input_ids=ids[None, :n]).logits
            for ids, n in zip(tensors["input_ids"], lengths, strict=True)
        ]
        logits = torch.cat(rows)
    else:
        logits = logits_of(model(**tensors))
    weights = torch.from_numpy(cotangent(tuple(logits.shape)))
    (logits * weights * torch.from_numpy(present(kind, inputs))).sum().backward()
    gradients = {
        f"gradient {key}": x.grad.numpy()
        for key, x in model.named_parameters()
        if x.grad is not None
    }
    np.savez(folder / f"{name}.npz", logits=logits.detach().numpy(), **inputs, **gradients)


def logits_of(outputs: Any) -> Any:
    """Of a model of questions [B, L, 2], to begin and to end an answer."""
    import torch

    if "start_logits" in outputs:
        return torch.stack((outputs.start_logits, outputs.end_logits), -1)
    return outputs.logits


def present(kind: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """What the logits of tokens are multiplied with, so that padding does not count; else 1."""
    if kind not in ("token", "question", "causal", "masked", "seq2seq"):
        return np.ones((), np.float32)
    mask = arrays["decoder_attention_mask" if kind == "seq2seq" else "attention_mask"]
    return mask[..., None].astype(np.float32)


def of_timm(directory: Path, settings: dict[str, Any]) -> Any:
    """A model, saved in timm's hub format, and in scales.json the scales of its layer-wise decay."""
    import timm
    import timm.optim
    from safetensors.torch import save_file

    model = timm.create_model(
        settings["architecture"], num_classes=LABELS, **settings["model_args"]
    ).eval()
    directory.mkdir()
    said = {"input_size": [3, 32, 32], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3],
            "interpolation": "bicubic", "crop_pct": 0.9, "num_classes": LABELS}  # fmt: skip
    config = {**settings, "num_classes": LABELS, "pretrained_cfg": said}
    (directory / "config.json").write_text(json.dumps(config))
    save_file(
        {key: x.contiguous() for key, x in model.state_dict().items()},
        directory / "model.safetensors",
    )
    groups = timm.optim.param_groups_layer_decay(model, weight_decay=0.1, layer_decay=DECAY)
    names = {id(p): key for key, p in model.named_parameters()}
    scales = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    (directory.parent / f"{directory.name}.json").write_text(json.dumps(scales))
    return model


def cotangent(shape: tuple[int, ...]) -> np.ndarray:
    """What the logits are weighted with, so that the sum has a gradient."""
    return np.random.default_rng(2).normal(size=shape).astype(np.float32)


if __name__ == "__main__":
    for case in sys.argv[2:]:
        make(Path(sys.argv[1]), case)
