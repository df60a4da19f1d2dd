"""Fine-tuning as small exact optax transforms: freezing, layer-wise rates, unfreezing, averaging.

Works on any pytree of parameters and imports jax, optax and the standard library only.
`docs/optim.md` says for each transform what it does, when to use it, and shows it in Linen, NNX
and Equinox loops.
"""

from jaxft.optim.averaging import averaged, swa, weight_ema, wise_ft
from jaxft.optim.clip import Norm, clip_by_norm
from jaxft.optim.fine_tuning import fine_tuning_optimizer
from jaxft.optim.freeze import freeze
from jaxft.optim.groups import Group, parameter_groups, spread
from jaxft.optim.l2sp import l2sp
from jaxft.optim.layerwise import (
    depths_from_prefixes,
    depths_from_rules,
    layer_scales,
    scale_by_path,
)
from jaxft.optim.lint import Finding, lint
from jaxft.optim.lora_plus import lora_plus_scales
from jaxft.optim.masks import decay_mask
from jaxft.optim.partition import FROZEN, TRAIN, merge, split, train_labels
from jaxft.optim.paths import (
    align,
    by_path,
    check_patterns,
    exclude,
    leaf_paths,
    match_rules,
    path_map,
    select,
)
from jaxft.optim.sam import sam
from jaxft.optim.schedule_free import schedule_free, schedule_free_params
from jaxft.optim.stacked import merge_stack, scan_split, split_stack, stacked_scales
from jaxft.optim.stages import (
    Plan,
    Stage,
    bottom_up,
    chain_thaw,
    check_plan,
    explicit,
    frozen_in,
    lp_ft,
    prune_plan,
    stage_index,
    top_down,
    trainable_groups,
    windows,
)
from jaxft.optim.table import summary
from jaxft.optim.unfreeze import gate, gated, grow, unfreeze

__all__ = [
    "FROZEN",
    "Finding",
    "Group",
    "Norm",
    "Plan",
    "Stage",
    "TRAIN",
    "align",
    "averaged",
    "bottom_up",
    "by_path",
    "chain_thaw",
    "check_patterns",
    "check_plan",
    "clip_by_norm",
    "decay_mask",
    "depths_from_prefixes",
    "depths_from_rules",
    "exclude",
    "explicit",
    "fine_tuning_optimizer",
    "freeze",
    "frozen_in",
    "gate",
    "gated",
    "grow",
    "l2sp",
    "layer_scales",
    "leaf_paths",
    "lint",
    "lora_plus_scales",
    "lp_ft",
    "match_rules",
    "merge",
    "merge_stack",
    "parameter_groups",
    "path_map",
    "prune_plan",
    "sam",
    "scale_by_path",
    "scan_split",
    "schedule_free",
    "schedule_free_params",
    "select",
    "split",
    "split_stack",
    "spread",
    "stacked_scales",
    "stage_index",
    "summary",
    "swa",
    "top_down",
    "train_labels",
    "trainable_groups",
    "unfreeze",
    "weight_ema",
    "windows",
    "wise_ft",
]
