"""The peer of images_vs_torch.py: image models made, trained by a plain loop and measured, by PyTorch alone.

    python benchmarks/torch_images.py make vgg-0 resnet-0 --data FOLDER
    python benchmarks/torch_images.py train DIR --data FOLDER --output DIR
    python benchmarks/torch_images.py accuracy DIR --data FOLDER

`make` writes new models, whose kind and seed are in their names, as checkpoints with the usual initial
values: VGG-11 with batch norms in timm's form and a small head, as images of 32 x 32 need no larger one;
ResNet-18 at half its width and a ViT of four blocks, which are transformers' own. `train` fine-tunes one
as one would in a few lines: shuffled batches without padding, AdamW without decay on biases and norms,
linear warm-up and a cosine, gradients clipped. The last epoch counts. It prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import (
    AutoModelForImageClassification,
    PretrainedConfig,
    ResNetConfig,
    ViTConfig,
    get_cosine_schedule_with_warmup,
)

SIDE, HIDDEN = 32, 128
_VGG_11 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")
_PIXELS = {"mean": [0.5] * 3, "std": [0.5] * 3}


class VGG(nn.Module):
    """timm's vgg11_bn: its names, its initial values, and `mlp_ratio` for a head of HIDDEN values."""

    def __init__(self, labels: int):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in _VGG_11:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        parts = {"fc1": nn.Conv2d(channels, HIDDEN, 7), "fc2": nn.Conv2d(HIDDEN, 4096, 1)}
        self.pre_logits = nn.ModuleDict(parts)
        self.head = nn.ModuleDict({"fc": nn.Linear(4096, labels)})
        for path, value in self.named_parameters():
            if path.endswith("bias"):  # of batch norms it is 0 already
                nn.init.zeros_(value)
            elif value.ndim == 4:
                nn.init.kaiming_normal_(value, mode="fan_out", nonlinearity="relu")
            elif value.ndim == 2:
                nn.init.normal_(value, 0, 0.01)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = functional.adaptive_avg_pool2d(self.features(images), 7)
        for layer in self.pre_logits.values():
            x = layer(x).relu()
        return self.head["fc"](x.mean((2, 3)))


class DecoupledSGD(torch.optim.SGD):
    """Whose weight decay does not go through the momentum, as AdamW's does not go through the moments."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            for value in group["params"]:
                value.mul_(1 - group["lr"] * group["weight_decay"])
            group["weight_decay"] = 0.0
        super().step(closure)
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = decay


class Images:
    """A folder with one subfolder a class: pixels [N, 3, 32, 32] in -1 to 1, and class numbers [N]."""

    def __init__(self, folder: Path, names: list[str] | None = None):
        self.names = names or sorted(path.name for path in folder.iterdir() if path.is_dir())
        files = [(path, self.names.index(path.parent.name)) for path in folder.glob("*/*.*")]
        pixels = [_pixels(path) for path, _ in sorted(files)]
        self.pixels = torch.tensor(np.stack(pixels))
        self.labels = torch.tensor([label for _, label in sorted(files)])


def _pixels(path: Path) -> np.ndarray:
    image = Image.open(path).convert("RGB")
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return (np.asarray(image, np.float32) / 255 - 0.5).transpose(2, 0, 1) / 0.5


def make(folder: Path, data: Path) -> None:
    """A new model, as `folder` is named: KIND-SEED."""
    kind, seed = folder.name.split("-")
    torch.manual_seed(int(seed))
    names = Images(data / "train").names
    save(_new(kind, names), folder, names)


def _new(name: str, names: list[str]) -> nn.Module:
    if name == "vgg":
        return VGG(len(names))
    labels: dict[str, Any] = {
        "id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)},
    }  # fmt: skip
    configs: dict[str, PretrainedConfig] = {
        "resnet": ResNetConfig(
            embedding_size=32, hidden_sizes=[32, 64, 128, 256], depths=[2] * 4, layer_type="basic",
            **labels,
        ),
        "vit": ViTConfig(
            hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256,
            image_size=SIDE, patch_size=8, **labels,
        ),
    }  # fmt: skip
    return AutoModelForImageClassification.from_config(configs[name])


def save(model: Any, folder: Path, names: list[str]) -> None:
    """As a checkpoint that jaxft reads, with what it says of images."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, VGG):
        save_file(model.state_dict(), folder / "model.safetensors")
        config = {
            "architecture": "vgg11_bn", "num_classes": len(names), "label_names": names,
            "model_args": {"mlp_ratio": HIDDEN / 4096},
            "pretrained_cfg": {
                "input_size": [3, SIDE, SIDE], "crop_pct": 1.0, "interpolation": "bilinear", **_PIXELS,
            },
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        return
    model.save_pretrained(folder)
    prepared = {
        "image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE},
        "resample": 2, **{f"image_{name}": value for name, value in _PIXELS.items()},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(prepared))


def load(folder: Path) -> nn.Module:
    """In fp32."""
    config = json.loads((folder / "config.json").read_text())
    if "architecture" not in config:
        return AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32)
    model = VGG(config["num_classes"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


def logits(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """[N, 3, H, W] -> [N, C]."""
    output = model(pixels)
    return output if isinstance(output, torch.Tensor) else output.logits


def train(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The plain loop; the last epoch is what is saved and measured."""
    torch.manual_seed(args.seed)
    kind = getattr(torch, args.precision)
    images = Images(args.data / "train")
    images.pixels = images.pixels.to(kind)
    model = load(folder).to(kind).train()
    optimizer = _optimizer(model, args)
    steps = args.epochs * -(-len(images.labels) // args.batch_size)
    warmup = max(1, round(0.1 * steps))
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    wall, cpu = time.perf_counter(), _cpu()
    losses = []
    for _ in range(args.epochs):
        for rows in torch.randperm(len(images.labels)).split(args.batch_size):
            loss = functional.cross_entropy(logits(model, images.pixels[rows]), images.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    spent = {"loop_seconds": time.perf_counter() - wall, "loop_cpu_seconds": _cpu() - cpu}
    save(model.float(), args.output, images.names)
    return {"losses": losses, **spent}


def _optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    norms = {
        f"{path}.weight"
        for path, module in model.named_modules()
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d)
    }
    free: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, value in model.named_parameters():
        (free if name in norms or name.endswith("bias") else decayed).append(value)
    groups = [
        {"params": decayed, "weight_decay": args.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    if args.optimizer == "sgd":
        return DecoupledSGD(groups, lr=args.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=args.lr)


@torch.no_grad()
def accuracy(folder: Path, data: Path) -> float:
    """Of a checkpoint on the test images, whose classes it may number in any order."""
    model = load(folder).eval()
    raw = json.loads((folder / "config.json").read_text())
    names = raw.get("label_names") or [raw["id2label"][str(i)] for i in range(len(raw["id2label"]))]
    test = Images(data / "test", names)
    found = torch.cat([logits(model, part) for part in test.pixels.split(100)]).argmax(-1)
    return float((found == test.labels).float().mean())


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("make", "train", "accuracy"))
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight_decay", type=float, default=0.05)
    parser.add_argument("--precision", default="float32", choices=("float32", "float64"))
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "sgd"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.command == "make":
        for folder in args.folders:
            make(folder, args.data)
        return
    (folder,) = args.folders
    spent = train(folder, args) if args.command == "train" else {}
    trained = args.output if args.command == "train" else folder
    print(json.dumps({"accuracy": accuracy(trained, args.data), **spent}))


if __name__ == "__main__":
    main()
