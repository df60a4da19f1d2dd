from jaxft.config import default_config, override

BASE = {
    "task": "image_classification",
    "data.augment": "flip",  # 'none' where a mirrored image means something else (digits, text)
    "data.workers": 2,
    "train.epochs": 10.0,
    "optim.lr": 3e-4,
    "optim.layer_decay": 0.75,  # what BEiT and MAE fine-tune ViT-B with is 0.65
    "optim.schedule": "cosine",
    "optim.weight_decay": 0.05,
}


def get_config(arg=None):
    return override(default_config(), BASE)
