from jaxft.config import default_config, override

BASE = {
    "task": "seq2seq",
    "eval.metric": "loss",  # nats a token; or, of generated texts, rougeL, bleu, chrf, exact_match
    "eval.generate": 100,  # rows whose texts are generated and scored at each evaluation
    "train.batch_size": 16,
    "data.max_length": 512,
    "data.max_target_length": 128,
    "optim.lr": 3e-4,  # T5 takes larger rates than encoders
}


def get_config(arg=None):
    return override(default_config(), BASE)
