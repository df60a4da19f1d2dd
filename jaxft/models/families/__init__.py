"""The one table that names the families.

To add one: its file here with a FAMILY, its line in the table, its row in the parity test.
"""

from typing import Any

from jaxft.models.families import (
    bert,
    deberta_v2,
    distilbert,
    electra,
    gpt2,
    llama,
    resnet,
    roberta,
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
    "gpt2": gpt2.FAMILY,
    "llama": llama.FAMILY,
    "vit": vit.FAMILY,
    "resnet": resnet.FAMILY,
}
