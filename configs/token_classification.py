from jaxft.config import default_config, override

BASE = {
    "task": "token_classification",
    "eval.metric": "f1",  # of whole entities; accuracy also counts the many words that are in none
    "optim.lr": 5e-5,
}


def get_config(arg=None):
    return override(default_config(), BASE)
