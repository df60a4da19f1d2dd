from jaxft.config import choose, default_config, override

BASE = {
    "task": "few_shot",
    "eval.metric": "f1_macro",  # unlike accuracy, it notices a rare class that is never predicted
    "optim.lr": 2e-5,
    "train.batch_size": 16,  # pairs
    "train.epochs": 1.0,  # of pairs: each text is in many
}
PURPOSES = {
    "full": {},
    "iterations": {"data.pair_iterations": 20},  # for more than some tens of rows a class
}


def get_config(purpose: str = "full"):
    return override(default_config(), BASE, choose(PURPOSES, purpose))
