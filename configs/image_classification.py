"""Fine-tune a ViT on a folder of images with one subfolder a label (or any other image source).

    python -m jaxft.train --config configs/image_classification.py --workdir runs/mine \
        --config.model.path=DIR_OR_HUB_ID --config.data.train=my_images/

Images are decoded, resized and normalised as the checkpoint's preprocessor_config.json says.
"""

from jaxft.config import default_config


def get_config(arg=None):
    config = default_config()
    config.task = "image_classification"
    config.data.augment = (
        "flip"  # images whose meaning changes when mirrored (digits, text): 'none'
    )
    config.data.workers = 2
    config.train.epochs = 10.0
    config.optim.lr = 3e-4
    config.optim.layer_decay = 0.75  # what BEiT and MAE fine-tune ViT-B with is 0.65
    config.optim.schedule = "cosine"
    config.optim.weight_decay = 0.05
    return config
