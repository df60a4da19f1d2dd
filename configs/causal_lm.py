from jaxft.config import default_config, override

BASE = {
    "task": "causal_lm",
    "eval.metric": "loss",  # nats a token; perplexity is its exponential
    "train.batch_size": 8,  # documents, or windows of long ones
    "data.max_length": 1024,  # tokens of a window
    "optim.lr": 5e-5,
}


def get_config(arg=None):
    return override(default_config(), BASE)
