from jaxft.config import default_config, override

BASE = {
    "task": "text_regression",
    "eval.metric": "loss",  # the mean squared error; or spearman, if only the order counts
    "optim.lr": 5e-5,
}


def get_config(arg=None):
    return override(default_config(), BASE)
