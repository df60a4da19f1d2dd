from jaxft.config import default_config, override

BASE = {
    "task": "multiple_choice",
    "eval.metric": "accuracy",
    "optim.lr": 3e-5,
}


def get_config(arg=None):
    return override(default_config(), BASE)
