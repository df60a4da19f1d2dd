from jaxft.config import default_config, override

BASE = {
    "task": "multi_label",
    "eval.metric": "average_precision_macro",  # needs no threshold, unlike F1, and heeds rare labels
    "optim.lr": 5e-5,
}


def get_config(arg=None):
    return override(default_config(), BASE)
