"""The config.json of an export."""

from collections.abc import Collection, Mapping
from typing import Any

from jaxft.models.checkpoint import tensors, timm_config
from jaxft.models.contract import Architecture
from jaxft.models.heads import SENTENCE

# Under this key stand numbers that were fitted on evaluation data (thresholds, a temperature);
# transformers keeps what it does not know.
FITTED = "fitted_on_evaluation"


def exported_config(
    architecture: Architecture,
    id2label: dict[int, str],
    problem_type: str | None,
    dtypes: Collection[str],
    fitted: Mapping[str, Any],
) -> dict[str, Any]:
    """The source's config.json with what has changed.

    Args:
        id2label, problem_type: of the head; see `hf.write_checkpoint`.
        dtypes: of the tensors, as safetensors calls them.
        fitted: numbers that predictions need besides the parameters, as JSON; {} where there are none.
    """
    config = dict(architecture.hf_config)
    for stale in ("problem_type", FITTED, SENTENCE):
        config.pop(stale, None)
    if SENTENCE in architecture.naming.classifiers:
        config[SENTENCE] = tensors.APART  # where it is, and that there is one: the class has none
    if fitted:
        config[FITTED] = dict(fitted)
    if timm_config.is_timm(architecture.hf_config):
        return timm_config.exported(config, id2label, problem_type)
    source_dtype = config.pop("torch_dtype", None)  # the old name of `dtype`
    source_dtype = config.pop("dtype", None) or source_dtype
    for stale in ("num_labels", "_num_labels", "id2label", "label2id", "finetuning_task"):
        config.pop(stale, None)
    config["architectures"] = [architecture.exports]
    # transformers casts everything to this dtype: fp32 as soon as one tensor needs it.
    config["dtype"] = "float32" if "F32" in dtypes else source_dtype
    if id2label:
        config["id2label"] = {str(index): id2label[index] for index in sorted(id2label)}
        config["label2id"] = {id2label[index]: index for index in sorted(id2label)}
    if problem_type is not None:
        config["problem_type"] = problem_type
    # The labels inside stay in the order of their numbers: sorted as text, "10" precedes "2".
    return dict(sorted(config.items()))
