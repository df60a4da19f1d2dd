"""Fine-tune a text encoder on labelled texts or pairs of texts.

    python -m jaxft.train --config configs/text_classification.py --workdir runs/mine \
        --config.model.path=DIR_OR_HUB_ID --config.data.train=my.csv

Text and label columns are found by their usual names (text | sentence1, sentence2 | … ; label | …).
With an argument the optimizer is set up for a purpose:

    configs/text_classification.py:full        every parameter at one rate (the default)
    configs/text_classification.py:layerwise   each block further from the head learns 0.9 times as fast
    configs/text_classification.py:half        embeddings and the lower half of a 6-block encoder frozen
    configs/text_classification.py:head        only pooler and classifier learn, whatever the depth
"""

from jaxft.config import default_config


def get_config(purpose: str = "full"):
    config = default_config()
    config.task = "text_classification"
    config.eval.metric = (
        "f1_macro"  # unlike accuracy, it notices a rare class that is never predicted
    )
    config.optim.lr = 5e-5
    if purpose == "layerwise":
        config.optim.layer_decay = 0.9
    elif purpose == "half":
        config.optim.freeze_below = 3
    elif purpose == "head":
        config.optim.freeze_below = "all"
        config.optim.lr = 1e-3  # a head that learns alone can take larger steps
    elif purpose != "full":
        raise ValueError(f"purpose {purpose!r} is not one of full, layerwise, half, head")
    return config
