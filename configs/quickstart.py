from pathlib import Path

from jaxft.config import choose, default_config, override

BASE = {
    "task": "image_classification",
    "model.path": str(Path(__file__).parent / "digits_vit"),
    "data.train": "sklearn:digits:train",
    "data.test": "sklearn:digits:test",
    "data.classes": ("5", "6", "7", "8", "9"),
    "data.examples_per_class": 5,
    "data.eval_fraction": 0.07,
    "train.batch_size": 25,
    "train.epochs": 60.0,
    "eval.every": "100%",
    "optim.lr": 4e-3,
    "optim.schedule": "cosine",
    "optim.weight_decay": 0.05,
}
PURPOSES = {
    "finetune": {"optim.freeze_below": 1, "optim.layer_decay": 0.8},
    "scratch": {"model.scratch": True, "optim.lr": 2e-3},
    "pretrain": {
        "model.scratch": True,
        "data.classes": ("0", "1", "2", "3", "4"),
        "data.examples_per_class": None,
        "data.eval_fraction": 0.1,
        # Mirrored and cropped digits are no digits, but what is learned from them carries over better.
        "data.augment": "crop_flip",
        "train.batch_size": 64,
        "train.epochs": 300.0,
        "optim.lr": 1e-3,
    },
}


def get_config(purpose: str = "finetune"):
    return override(default_config(), BASE, choose(PURPOSES, purpose))
