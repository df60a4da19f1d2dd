"""Fine-tune a text encoder to tag words: named entities, parts of speech.

    python -m jaxft.train --config configs/token_classification.py --workdir runs/mine \
        --config.model.path=DIR_OR_HUB_ID --config.data.train=my.conll

A row has words and as many tags: a CoNLL file (a word and its tag a line, a blank line between sentences), or
columns of lists in a JSONL or Parquet file or a Hugging Face data set, found by their usual names (tokens |
words; tags | ner_tags | …).
"""

from jaxft.config import default_config


def get_config(arg=None):
    config = default_config()
    config.task = "token_classification"
    config.eval.metric = "f1"
    config.optim.lr = 5e-5
    return config
