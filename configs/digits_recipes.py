from pathlib import Path

from jaxft.config import choose, override
from jaxft.terminal.config_file import load

QUICKSTART = str(Path(__file__).parent / "quickstart.py")
LR = 2e-3
PLAIN = {"optim.freeze_below": None, "optim.layer_decay": 1.0, "optim.lr": LR}
RECIPES = {
    "plain": {},
    "layerwise": {"optim.layer_decay": 0.7},
    "gradual": {"optim.unfreeze": "top_down", "optim.unfreeze_every": "10%"},
    "lp_ft": {"optim.unfreeze": "lp_ft", "optim.unfreeze_every": "20%"},
    "groups": {
        "optim.groups": (
            ("classifier/.*", {"lr": 2 * LR, "weight_decay": 0.0}),
            ("vit/embeddings/.*", {"lr": LR / 10, "schedule": "constant"}),
        )
    },
    "l2sp": {"optim.decay_towards": "pretrained", "optim.weight_decay": 0.5},
    "ema": {"optim.average": "ema"},
    "swa": {"optim.average": "swa", "optim.average_from": "75%"},
    "wise_ft": {
        "optim.unfreeze": "lp_ft", "optim.unfreeze_every": "20%", "optim.wise_ft": 0.5
    },
    "sam": {"optim.sam_radius": 0.05},
    "free": {"optim.schedule_free": True, "optim.schedule": "constant"},
}  # fmt: skip


def get_config(recipe: str = "plain"):
    return override(load(QUICKSTART), PLAIN, choose(RECIPES, recipe))
