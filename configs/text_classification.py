from jaxft.config import choose, default_config, override

BASE = {
    "task": "text_classification",
    "eval.metric": "f1_macro",  # unlike accuracy, it notices a rare class that is never predicted
    "optim.lr": 5e-5,
}
PURPOSES = {
    "full": {},
    "layerwise": {"optim.layer_decay": 0.9},
    "half": {"optim.freeze_below": 3},
    "head": {"optim.freeze_below": "all", "optim.lr": 1e-3},  # alone it can take larger steps
}


def get_config(purpose: str = "full"):
    return override(default_config(), BASE, choose(PURPOSES, purpose))
