"""Models of timm and torchvision in plain torch.nn, under their names, and checkpoints in timm's form."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

VGG_DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2,) * 5, 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """timm's, whose head is of convolutions, or torchvision's, whose head is of linear layers."""

    def __init__(self, name: str, form: str, *, channels: int, hidden: int, labels: int):
        super().__init__()
        count, _, norm = name.removeprefix("vgg").partition("_")
        layers: list[nn.Module] = []
        for width, depth in zip((64, 128, 256, 512, 512), VGG_DEPTHS[int(count)], strict=True):
            for _ in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1)]
                layers += [nn.BatchNorm2d(width), nn.ReLU()] if norm else [nn.ReLU()]
                channels = width
            layers += [nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        if form == "timm":
            self.pre_logits = nn.ModuleDict(
                {"fc1": nn.Conv2d(512, hidden, 7), "fc2": nn.Conv2d(hidden, 4096, 1)}
            )
            self.head = nn.ModuleDict({"fc": nn.Linear(4096, labels)})
        else:
            self.classifier = nn.Sequential(
                nn.Linear(512 * 7 * 7, hidden), nn.ReLU(), nn.Dropout(),
                nn.Linear(hidden, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, labels),
            )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.features(images)
        if hasattr(self, "classifier"):
            return self.classifier(functional.adaptive_avg_pool2d(x, (7, 7)).flatten(1))
        x = functional.adaptive_avg_pool2d(x, [max(7, side) for side in x.shape[2:]])
        for layer in self.pre_logits.values():
            x = layer(x).relu()
        return self.head["fc"](x.mean((2, 3)))


class Residual(nn.Module):
    """A residual layer: two convolutions of 3 x 3, or three of 1, 3 and 1 of which the second halves."""

    def __init__(self, inputs: int, channels: int, *, bottleneck: bool, stride: int):
        super().__init__()
        self.count, outputs = (3, 4 * channels) if bottleneck else (2, channels)
        sizes, strides = ((1, 3, 1), (1, stride, 1)) if bottleneck else ((3, 3), (stride, 1))
        widths = [inputs, *[channels] * (self.count - 1), outputs]
        for i, (size, step) in enumerate(zip(sizes, strides, strict=True)):
            layer = nn.Conv2d(widths[i], widths[i + 1], size, step, size // 2, bias=False)
            setattr(self, f"conv{i + 1}", layer)
            setattr(self, f"bn{i + 1}", nn.BatchNorm2d(widths[i + 1]))
        shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        changes = inputs != outputs or stride != 1
        self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs)) if changes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = y.relu() if i < self.count else y
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
    def __init__(self, layers, widths, *, bottleneck: bool, channels: int, labels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for stage, (count, width) in enumerate(zip(layers, widths, strict=True), start=1):
            blocks = []
            for i in range(count):
                stride = 2 if stage > 1 and i == 0 else 1
                blocks.append(Residual(inputs, width, bottleneck=bottleneck, stride=stride))
                inputs = width * (4 if bottleneck else 1)
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, labels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(self.bn1(self.conv1(images)).relu(), 3, 2, 1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(x.mean((2, 3)))


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Biases, norms and batch statistics as of a trained model; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(
            module, nn.Conv2d
        ):  # as both libraries do: torch's own spread dies out in a VGG
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1:
            noise = torch.randn(tensor.shape, generator=generator)
            tensor += noise.abs() if name.endswith("running_var") else 0.2 * noise
    return model.eval()


def write(folder: Path, model: nn.Module, architecture: str, labels: int, **config: Any) -> str:
    """The checkpoint, with what timm says of images and classes, changed by `config`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    raw = {
        "architecture": architecture,
        "num_classes": labels,
        "label_names": [f"n{index}" for index in range(labels)],
        "pretrained_cfg": {
            "input_size": [3, 32, 32],
            "crop_pct": 0.875,
            "interpolation": "bilinear",
            "mean": [0.4, 0.5, 0.6],
            "std": [0.2, 0.25, 0.3],
            "num_classes": labels,
        },
        **config,
    }
    (folder / "config.json").write_text(json.dumps(raw))
    return str(folder)
