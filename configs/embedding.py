from jaxft.config import choose, default_config, override

BASE = {
    "task": "embedding",
    "optim.lr": 2e-5,
    "train.epochs": 1.0,
}
PURPOSES = {
    # Of a larger batch each text is told from more others; accumulation costs time, no memory.
    "pairs": {"eval.metric": "mrr", "train.batch_size": 128},
    "scores": {"eval.metric": "spearman", "train.epochs": 4.0},
}


def get_config(purpose: str = "pairs"):
    return override(default_config(), BASE, choose(PURPOSES, purpose))
