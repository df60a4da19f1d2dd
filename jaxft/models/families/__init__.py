"""The two tables that name the families: by `model_type`, and those named by timm's `architecture`.

To add one: its file here with a FAMILY, its line in a table, its row in the parity test.
"""

from typing import Any

from jaxft.base.json_file import brief
from jaxft.base.nearest import nearest
from jaxft.models.families import (
    bert,
    convnext,
    deberta_v2,
    deit,
    dinov2,
    distilbert,
    electra,
    gemma2,
    gemma3,
    gpt2,
    llama,
    mistral,
    modernbert,
    qwen2,
    qwen3,
    resnet,
    roberta,
    siglip,
    t5,
    timm_resnet,
    vgg,
    vit,
)
from jaxft.models.family import Family

FAMILIES: dict[str, Family[Any]] = {
    "bert": bert.FAMILY,
    "roberta": roberta.FAMILY,
    "xlm-roberta": roberta.XLM_ROBERTA,
    "camembert": roberta.CAMEMBERT,
    "distilbert": distilbert.FAMILY,
    "electra": electra.FAMILY,
    "deberta-v2": deberta_v2.FAMILY,
    "modernbert": modernbert.FAMILY,
    "gpt2": gpt2.FAMILY,
    "llama": llama.FAMILY,
    "mistral": mistral.FAMILY,
    "qwen2": qwen2.FAMILY,
    "qwen3": qwen3.FAMILY,
    "gemma2": gemma2.FAMILY,
    "gemma3_text": gemma3.FAMILY,
    "t5": t5.FAMILY,
    "vit": vit.FAMILY,
    "deit": deit.FAMILY,
    "dinov2": dinov2.FAMILY,
    "siglip": siglip.FAMILY,
    "resnet": resnet.FAMILY,
    "convnext": convnext.FAMILY,
}
TIMM: tuple[Family[Any], ...] = (timm_resnet.FAMILY, vgg.FAMILY, vgg.TORCHVISION)


def family_of(directory: str, model_type: Any) -> Family[Any]:
    """The family of a `model_type` of `directory/config.json`.

    Raises:
        ValueError: none is implemented; one line with those that are.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(
            f"{directory}/config.json: model_type {brief(model_type)} is not implemented; known are "
            f"{', '.join(FAMILIES)}{nearest(str(model_type)[:60], FAMILIES)}"
        )
    return FAMILIES[model_type]
