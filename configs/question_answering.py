from jaxft.config import default_config, override

BASE = {
    "task": "question_answering",
    "eval.metric": "f1",
    "optim.lr": 3e-5,
    "data.max_length": 384,  # a longer context is read in windows, which have data.stride in common
    "data.stride": 128,
    "train.epochs": 2.0,
}


def get_config(arg=None):
    return override(default_config(), BASE)
