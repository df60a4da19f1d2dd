"""The one table that names the families.

To add one: its file here with a FAMILY, its line in the table, its row in the parity test.
"""

from typing import Any

from jaxft.models.families import bert, gpt2, resnet, roberta, vit
from jaxft.models.family import Family

FAMILIES: dict[str, Family[Any]] = {
    "bert": bert.FAMILY,
    "roberta": roberta.FAMILY,
    "gpt2": gpt2.FAMILY,
    "vit": vit.FAMILY,
    "resnet": resnet.FAMILY,
}
