from jaxft.config import default_config, override

BASE = {
    "task": "instruction",
    "eval.metric": "loss",  # nats a token of the completions
    "train.batch_size": 16,  # conversations
    "data.max_length": 1024,  # tokens of a conversation; what is beyond is cut off, and counted
    "optim.lr": 2e-5,
}


def get_config(arg=None):
    return override(default_config(), BASE)
