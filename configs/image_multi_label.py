from jaxft.config import default_config, override

BASE = {
    "task": "image_multi_label",
    "eval.metric": "average_precision_macro",  # needs no threshold, unlike F1, and heeds rare labels
    "data.augment": "flip",  # 'none' where a mirrored image means something else
    "data.workers": 2,
    "train.epochs": 10.0,
    "optim.lr": 3e-4,
    "optim.layer_decay": 0.75,
    "optim.schedule": "cosine",
    "optim.weight_decay": 0.05,
}


def get_config(arg=None):
    return override(default_config(), BASE)
