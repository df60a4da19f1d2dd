from jaxft.config import default_config, override

BASE = {
    "task": "image_regression",
    "eval.metric": "loss",  # the mean squared error; or spearman, if only the order counts
    "data.augment": "flip",  # 'none' where a mirrored image has another number
    "data.workers": 2,
    "train.epochs": 10.0,
    "optim.lr": 3e-4,
    "optim.layer_decay": 0.75,
    "optim.schedule": "cosine",
    "optim.weight_decay": 0.05,
}


def get_config(arg=None):
    return override(default_config(), BASE)
