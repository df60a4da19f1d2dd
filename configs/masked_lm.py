from jaxft.config import default_config, override

BASE = {
    "task": "masked_lm",
    "eval.metric": "loss",  # nats a masked token; perplexity is its exponential
    "data.max_length": 128,  # tokens of a window
    "data.mask_share": 0.15,
    "optim.lr": 5e-5,
}


def get_config(arg=None):
    return override(default_config(), BASE)
