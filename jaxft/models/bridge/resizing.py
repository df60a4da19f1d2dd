"""A bridged model that knows more tokens than its checkpoint: its config.json, and what has rows for them.

Modules made at both sizes say which tensors these are, be they embeddings, outputs, their biases or factors
of them; no name is looked for. So the export is what transformers makes of the config.json, as after its
own `resize_token_embeddings`.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from jaxft.models.bridge.module import Built
from jaxft.models.family import TextLimits

_ADVICE = "leave config.model.resize_vocabulary False"


def with_vocabulary(raw: Mapping[str, Any], config: Any, vocabulary: int) -> dict[str, Any]:
    """The config.json in which each size of the model's vocabulary is `vocabulary`.

    These are the keys named so that have the size of the text's own: of the decoder, of embeddings a layer,
    and in nested configs.

    Args:
        raw: config.json.
        config: what transformers made of it.
    """
    found = copy.deepcopy(dict(raw))
    old = config.get_text_config().vocab_size
    for parents, key, alias in _sizes(config, old):
        place = found
        for name in parents:
            place = place.setdefault(name, {})
        place[key] = vocabulary
        if alias in place:
            place[alias] = vocabulary
    return found


def _sizes(config: Any, old: int) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """(names of the configs around it, key, another name of the key) of every such size."""
    of_class = getattr(config, "attribute_map", {})
    named = of_class.get("vocab_size", "vocab_size")
    aliases = {key: alias for alias, key in of_class.items()}
    for key, value in vars(config).items():
        if hasattr(value, "to_dict"):
            for parents, inner, alias in _sizes(value, old):
                yield (key, *parents), inner, alias
        elif ("vocab_size" in key or key == named) and value == old:
            yield (), key, aliases.get(key, key)


def grown(where: str, small: Built, large: Built) -> dict[str, tuple[int, ...]]:
    """The shape in the checkpoint of each tensor that has rows for the new tokens, by name.

    Args:
        where: the file, for messages.
        small, large: as config.json has it, and with more tokens.

    Raises:
        ValueError: one of them is no table of tokens, or a table that is needed has not grown.
    """
    sizes = _vocabulary(small), _vocabulary(large)
    if sizes[0] == sizes[1]:
        raise ValueError(
            f"{where}: no key says how many tokens there are, so none can be added; {_ADVICE}"
        )
    before = {**small.parameters, **small.statistics}
    found = {}
    for name, x in {**large.parameters, **large.statistics}.items():
        old, new = tuple(before[name].shape), tuple(x.shape)
        if old == new:
            continue
        changed = [pair for pair in zip(old, new, strict=True) if pair[0] != pair[1]]
        if changed != [sizes]:
            raise ValueError(
                f"{where}: {name} of {large.exports} is {list(old)} for {sizes[0]} tokens and "
                f"{list(new)} for {sizes[1]}, so it has not one row for each, and cannot grow; {_ADVICE}"
            )
        if not x.is_floating_point():
            raise ValueError(
                f"{where}: {name} of {large.exports} has whole numbers for each token, which cannot be "
                f"drawn for new ones; {_ADVICE}"
            )
        found[name] = old
    for what, rows in _tables(large):
        if rows < sizes[1]:
            raise ValueError(
                f"{where}: the {what} of {large.exports} keep {rows} rows, which config.json counts "
                f"apart from the {sizes[0]} tokens, so they cannot grow to {sizes[1]}; {_ADVICE}"
            )
    return found


def _vocabulary(built: Built) -> int:
    assert isinstance(built.limits, TextLimits)
    return built.limits.vocabulary


def _tables(built: Built) -> Iterator[tuple[str, int]]:
    """(what, rows) of the tables that tokens index, as far as the module says which they are."""
    module: Any = built.module
    asked = [("input embeddings", lambda: module.get_input_embeddings())]
    if built.head == "seq2seq":
        asked.append(("decoder's embeddings", lambda: module.get_decoder().get_input_embeddings()))
    if built.head in ("causal", "masked", "seq2seq"):
        asked.append(("output embeddings", lambda: module.get_output_embeddings()))
    for what, table in asked:
        try:
            weight = getattr(table(), "weight", None)
        except (AttributeError, NotImplementedError, TypeError):  # it does not say
            continue
        if weight is not None:
            yield what, len(weight)
