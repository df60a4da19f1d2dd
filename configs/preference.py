from jaxft.config import default_config, override

BASE = {
    "task": "preference",
    "eval.metric": "loss",  # or accuracy, the share of pairs in order, which many steps may share
    "train.batch_size": 16,  # pairs
    "train.epochs": 1.0,
    "train.preference_loss": "dpo",
    "train.beta": 0.1,
    "data.max_length": 1024,  # tokens of the prompt and one answer
    "optim.lr": 5e-7,  # of full fine-tuning, as in the paper; a tenth to a hundredth of what others take
}


def get_config(arg=None):
    return override(default_config(), BASE)
