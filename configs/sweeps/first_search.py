"""A first search over how to fine-tune: rates, what is frozen, regularisation.

    python -m jaxft.sweep --config configs/text_classification.py \\
        --space configs/sweeps/first_search.py --workdir runs/sweep \\
        --config.model.path=DIR_OR_HUB_ID --config.data.train=my.csv

`:rates` searches the learning rate alone, in a grid of six: one program for all of them.
"""

from jaxft.config import choose
from jaxft.search.sweeps.domains import Choice, Float, When

SPACES = {
    "full": {
        "optim.freeze_below": Choice(None, 3, "all"),
        # A head alone can take larger steps.
        "optim.lr": When(
            "optim.freeze_below",
            {
                None: Float(1e-5, 2e-4, log=True),
                3: Float(2e-5, 5e-4, log=True),
                "all": Float(1e-4, 1e-2, log=True),
            },
        ),
        "optim.layer_decay": When(
            "optim.freeze_below", {None: Float(0.7, 1.0), 3: Float(0.7, 1.0)}
        ),
        "optim.weight_decay": Float(0.0, 0.1),
        "optim.warmup": Float(0.0, 0.2),
        "train.label_smoothing": Choice(0.0, 0.1),
        "train.epochs": 3.0,
    },
    "rates": {"optim.lr": Float(1e-5, 1e-3, log=True, points=6)},
}


def get_space(which: str = "full"):
    return choose(SPACES, which)
