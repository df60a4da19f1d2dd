"""config.json in the form of timm's models on the Hugging Face hub: `architecture`, no `model_type`.

Its keys are those of `timm.models.save_for_hf`: a name says the sizes, `model_args` change them,
`pretrained_cfg` says how images are prepared, and `label_names` name the classes. In memory the
classes stand as in a Hugging Face config, too, under `id2label`, which is not written.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxft.base.json_file import brief
from jaxft.base.nearest import nearest
from jaxft.models.checkpoint import tensors
from jaxft.models.family import Family

_MOST_CLASSES = 10**6


def is_timm(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is of this form, and none of transformers or of a run of jaxft."""
    return "architecture" in raw and "model_type" not in raw


def with_labels(raw: dict[str, Any]) -> dict[str, Any]:
    """The same with `id2label`, as transformers has it; 'LABEL_0', … where no names are given.

    Raises:
        ValueError: num_classes is none, or the names are not for so many classes.
    """
    count, names = raw.get("num_classes", 1000), _label_names(raw)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _MOST_CLASSES:
        raise ValueError(
            f"num_classes {brief(count)} must be a whole number from 0 to {_MOST_CLASSES:,}"
        )
    # A mapping may have gaps: timm's own for labels that a data set does not use.
    if isinstance(names, Mapping) and set(names) <= {str(i) for i in range(count)}:
        found = [names.get(str(i), f"LABEL_{i}") for i in range(count)]
    elif isinstance(names, Sequence) and not isinstance(names, str) and len(names) == count:
        found = list(names)
    elif names is None:
        found = [f"LABEL_{i}" for i in range(count)]
    else:
        raise ValueError(f"label_names {brief(names)} do not name the {count} classes")
    return {**raw, "id2label": {str(i): name for i, name in enumerate(found)}}


def family_of(
    directory: str, raw: Mapping[str, Any], families: Sequence[Family[Any]]
) -> Family[Any]:
    """The family that has `architecture` of this config.json.

    Models of torchvision have timm's names but may have other tensors: of several families it is the
    one whose classifier the checkpoint has, and the first where it has none. Only headers are read.

    Raises:
        ValueError: none has it; one line with the nearest name.
    """
    name = raw["architecture"]
    found = [family for family in families if isinstance(name, str) and name in family.timm]
    if not found:
        known = sorted({known for family in families for known in family.timm})
        raise ValueError(
            f"{directory}/config.json: architecture {brief(name)} is not implemented; known of "
            f"timm are {', '.join(known)}{nearest(str(name)[:60], known)}"
        )
    if len(found) == 1:
        return found[0]
    classifiers = {
        f"{head.classifier}.weight".replace("/", "."): family
        for family in found
        for head in family.heads.values()
    }
    try:
        names = tensors.entries(directory)
    except ValueError:  # no weights, or damaged ones, which are refused where they are needed
        names = {}
    return next((classifiers[name] for name in names if name in classifiers), found[0])


def settings(raw: Mapping[str, Any], family: Family[Any]) -> dict[str, Any]:
    """What the family's Config is made of: the sizes of the architecture, changed by `model_args`.

    Raises:
        ValueError: `model_args` or `pretrained_cfg` is no object, or another pooling than the mean.
    """
    given, prepared = raw.get("model_args") or {}, pretrained_cfg(raw)
    if not isinstance(given, Mapping) or not isinstance(prepared, Mapping):
        raise ValueError("config.json: model_args and pretrained_cfg must be JSON objects")
    for pool in (raw.get("global_pool", "avg"), given.get("global_pool", "avg")):
        if pool != "avg":
            raise ValueError(f"config.json: global_pool {brief(pool)} must be 'avg'")
    size = prepared.get("input_size")
    channels = {"in_chans": size[0]} if isinstance(size, list) and len(size) == 3 else {}
    rest = {key: given[key] for key in given if key not in ("num_classes", "global_pool")}
    name = raw["architecture"]
    return {"model_type": name, **family.timm[name], **channels, **rest}


def exported(
    raw: Mapping[str, Any], id2label: Mapping[int, str], problem_type: str | None = None
) -> dict[str, Any]:
    """The config.json of a model that was fine-tuned: the same with these classes.

    timm's models have one class an image and no `problem_type`, which is written where it is another.
    """
    config = {
        key: value
        for key, value in raw.items()
        # Descriptions and an offset are of the classes that were.
        if key not in ("id2label", "label_names", "label_descriptions", "label_offset", "labels")
    }
    config["num_classes"] = len(id2label)
    config["label_names"] = [id2label[index] for index in sorted(id2label)]
    if problem_type not in (None, "single_label_classification"):
        config["problem_type"] = problem_type
    for part in ("pretrained_cfg", "model_args"):
        if part in config:
            config[part] = _classes_of(config[part], len(id2label))
    return config


def _classes_of(part: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """Without what is said of other classes; their number stays where it was."""
    stale = ("label_names", "label_descriptions", "label_offset", "num_classes")
    kept = {key: value for key, value in part.items() if key not in stale}
    return kept | ({"num_classes": classes} if "num_classes" in part else {})


def pretrained_cfg(raw: Mapping[str, Any]) -> Any:
    """Earlier versions of timm have its keys in config.json itself."""
    return raw.get("pretrained_cfg", raw)


def _label_names(raw: Mapping[str, Any]) -> Any:
    return next(
        (
            part["label_names"]
            for part in (raw, pretrained_cfg(raw))
            if isinstance(part, Mapping) and part.get("label_names") is not None
        ),
        raw.get("labels"),
    )
