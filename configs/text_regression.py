"""Fine-tune a text encoder to give a number for a text or a pair of texts.

    python -m jaxft.train --config configs/text_regression.py --workdir runs/mine \
        --config.model.path=DIR_OR_HUB_ID --config.data.train=my.csv

Text and number columns are found by their usual names (text | sentence1, sentence2 | … ; score | label |
…). The loss is the mean squared error in the unit of the data: numbers between about -5 and 5 are learned
soonest, so divide or shift those that are far from it.
"""

from jaxft.config import default_config


def get_config(arg=None):
    config = default_config()
    config.task = "text_regression"
    config.eval.metric = "loss"
    config.optim.lr = 5e-5
    return config
