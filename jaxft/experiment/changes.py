"""What is done to training examples, of what the config asks for."""

from __future__ import annotations

from jaxft.base.nested import flatten
from jaxft.config import ConfigDict, default_config
from jaxft.data.augment import Augment
from jaxft.data.inputs import Tokenising
from jaxft.data.mixing import Mixing
from jaxft.data.text_noise import TextNoise, text_noise
from jaxft.data.tokenizer import load_tokenizer

_CROP = (0.35, 1.0)  # area of a random crop
# Fields that change training examples -> the kind of inputs that they change.
_CHANGES = {
    "data.augment": "image", "data.augment_policy": "image", "data.color_jitter": "image",
    "data.erase": "image", "data.mixup": "image", "data.cutmix": "image",
    "data.token_dropout": "text", "data.word_swap": "text",
}  # fmt: skip


def check_changes(config: ConfigDict, inputs: str) -> None:
    """ValueError for a change of examples that is asked for and would not be made."""
    given, defaults = flatten(config), flatten(default_config())
    if config.data.mix_probability != 1 and not mixing_of(config):
        raise ValueError(
            f"config.data.mix_probability={config.data.mix_probability} is of images that are mixed: it "
            "needs config.data.mixup or config.data.cutmix other than 0"
        )
    for field, kind in _CHANGES.items():
        if given[field] != defaults[field] and inputs != kind:
            whole = " that have one target as a whole" if kind == "text" else ""
            raise ValueError(
                f"config.{field}={given[field]!r} is for {kind}s{whole}, and config.task={config.task!r} "
                f"reads {inputs}; leave it at {defaults[field]!r}"
            )
    if mixing_of(config) and config.train.batch_size == 1:
        field = "mixup" if config.data.mixup else "cutmix"
        raise ValueError(
            f"config.data.{field}={config.data[field]} mixes the images of a batch, and "
            "config.train.batch_size=1 has no other; give it at least 2"
        )


def change_of(config: ConfigDict) -> str:
    """The field by which training examples change from one reading to the next; '' where they do not."""
    given, defaults = flatten(config), flatten(default_config())
    return next((field for field in _CHANGES if given[field] != defaults[field]), "")


def augment_of(config: ConfigDict) -> Augment:
    """What is done to training images."""
    c = config.data
    policy = "" if c.augment_policy == "none" else c.augment_policy
    return Augment(
        crop_scale=_CROP if c.augment == "crop_flip" else None,
        flip=c.augment in ("flip", "crop_flip"),
        policy=policy,
        jitter=c.color_jitter,
        erase=c.erase,
    )


def mixing_of(config: ConfigDict) -> Mixing:
    """How training images are mixed with each other."""
    c = config.data
    return Mixing(c.mixup, c.cutmix, c.mix_probability, c.mix_switch, config.train.seed)


def has_noise(config: ConfigDict) -> bool:
    """Whether tokens of training texts change."""
    return bool(config.data.token_dropout or config.data.word_swap)


def noise_of(config: ConfigDict, how: Tokenising) -> TextNoise:
    """What is done to the tokens of training texts. ValueError: the tokenizer has nothing to hide them by."""
    c = config.data
    return text_noise(
        load_tokenizer(how.directory), how.directory, how.vocab_size, dropout=c.token_dropout,
        swap=c.word_swap, seed=config.train.seed,
    )  # fmt: skip
