"""Parameter paths, and ordered rules over them: the one language for every per-parameter decision.

A path names a leaf by its keys joined with '/': `encoder/layer/3/query/kernel`. The same model
has the same paths as nested dicts (str or int keys), lists, NNX State, Linen FrozenDict or
Equinox module. A rule is `(pattern, value)`: the pattern is a regular expression that must match
the *whole* path (`re.fullmatch`), and of several matching rules the first wins. This module knows
nothing of optimizers.
"""

from __future__ import annotations

import difflib
import functools
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from jaxft.optim.hints import correction

Tree = Any  # a pytree: nested dicts and lists, nnx.State, FrozenDict, an Equinox module, …
Rule = tuple[str, Any]
T = TypeVar("T")

_REQUIRED: Any = object()


def leaf_paths(tree: Tree) -> tuple[str, ...]:
    """Path of each leaf, in the order of `jax.tree.leaves`. None holds no leaf.

    The `/value` that a box adds below the key of its parameter is left out: an NNX Variable, or
    `Partitioned` and `LogicallyPartitioned` of Linen.

    >>> leaf_paths({'layers': [{'kernel': 1.0}, {'kernel': 2.0}], 'head': {'bias': None}})
    ('layers/0/kernel', 'layers/1/kernel')
    """
    return tuple(map(_join, _keys(tree, ())))


def by_path(tree: Tree) -> dict[str, Any]:
    """The leaves of `tree` by path.

    >>> by_path({'head': {'bias': 1, 'kernel': 2}})
    {'head/bias': 1, 'head/kernel': 2}

    Raises:
      ValueError: two leaves have one path (a dict key that itself contains '/').
    """
    paths = leaf_paths(tree)
    leaves = dict(zip(paths, jax.tree.leaves(tree), strict=True))
    if len(leaves) < len(paths):
        twice = sorted({path for path in paths if paths.count(path) > 1})
        raise ValueError(
            f"several leaves have the path {twice[0]!r}: rename the key that contains '/'"
        )
    return leaves


def path_map(fn: Callable[[str, Any], Any], tree: Tree) -> Tree:
    """`fn(path, leaf)` for every leaf, in the structure of `tree`.

    >>> path_map(lambda path, leaf: path.split('/')[-1], {'head': {'bias': 0, 'kernel': 0}})
    {'head': {'bias': 'bias', 'kernel': 'kernel'}}
    """
    leaves, treedef = jax.tree.flatten(tree)
    results = [fn(path, leaf) for path, leaf in zip(leaf_paths(tree), leaves, strict=True)]
    return jax.tree.unflatten(treedef, results)


def match_rules(
    rules: Iterable[tuple[str, T]],
    tree: Tree,
    *,
    default: T = _REQUIRED,
    must_match: bool = True,
) -> Tree:
    """The value of the first rule that matches each leaf's path, in the structure of `tree`.

    >>> rules = [('head/.*', 1.0), ('.*/bias', 0.5)]
    >>> match_rules(rules, {'body': {'bias': 0, 'kernel': 0}, 'head': {'bias': 0}}, default=0.1)
    {'body': {'bias': 0.5, 'kernel': 0.1}, 'head': {'bias': 1.0}}

    Args:
      rules: ordered (pattern, value); the pattern matches the whole path, the first match wins.
      default: value of leaves that no rule matches; without it such a leaf is an error.
      must_match: whether a pattern that matches no path of `tree` is an error. Turn it off only for
        rules that are written for many models (sharding), or for a tree with holes.

    Raises:
      ValueError: a pattern matches nothing (the message has the nearest real paths) or is not a
        regular expression; a leaf has no rule.
    """
    rules = tuple(rules)
    if must_match:
        check_patterns((pattern for pattern, _ in rules), tree)
    compiled = [(_compile(pattern), value) for pattern, value in rules]

    def value_of(path: str, leaf: Any) -> T:
        del leaf
        for pattern, value in compiled:
            if pattern.fullmatch(path):
                return value
        if default is _REQUIRED:
            known = ", ".join(repr(pattern) for pattern, _ in rules)
            raise ValueError(
                f"no rule matches the parameter {path!r}; the rules are {known or 'none'}"
            )
        return default

    return path_map(value_of, tree)


def select(tree: Tree, patterns: Sequence[str]) -> Tree:
    """True where one of the patterns matches the path, in the structure of `tree`.

    >>> select({'body': {'kernel': 0}, 'head': {'kernel': 0}}, ['head/.*'])
    {'body': {'kernel': False}, 'head': {'kernel': True}}

    Raises:
      ValueError: a pattern matches nothing, as in `match_rules`.
    """
    return match_rules([(pattern, True) for pattern in _listed(patterns)], tree, default=False)


def exclude(tree: Tree, patterns: Sequence[str]) -> Tree:
    """The opposite of `select`: False where one of the patterns matches the path."""
    return jax.tree.map(lambda chosen: not chosen, select(tree, patterns))


def align(values: Tree, tree: Tree) -> Tree:
    """The values that stand at the same paths, in the structure of `tree`.

    `values` may be of another container, and may have more leaves: this is how one set of rates
    serves the full tree, the trainable part with its holes, and a flat `{path: value}` alike.

    >>> align({'head/kernel': 0.5, 'body/kernel': 0.1}, {'body': None, 'head': {'kernel': 0}})
    {'body': None, 'head': {'kernel': 0.5}}

    Raises:
      ValueError: a path of `tree` is not in `values`.
    """
    known = by_path(values)

    def value_at(path: str, leaf: Any) -> Any:
        del leaf
        if path not in known:
            raise ValueError(f"nothing is given for the parameter {path!r}{nearest(path, known)}")
        return known[path]

    return path_map(value_at, tree)


def check_patterns(patterns: Iterable[str], tree: Tree) -> None:
    """Raise ValueError for the first pattern that matches no path, naming the nearest paths."""
    for message in unmatched(patterns, leaf_paths(tree)).values():
        raise ValueError(message)


def unmatched(patterns: Iterable[str], paths: Sequence[str]) -> dict[str, str]:
    """The patterns that match none of the paths, each with a line that says what is near it."""
    return {
        pattern: _no_match(pattern, paths)
        for pattern in patterns
        if not any(map(_compile(pattern).fullmatch, paths))
    }


def nearest(text: str, candidates: Iterable[str]) -> str:
    """'; nearest: …' with up to three of the candidates, or '' if none is similar."""
    close = difflib.get_close_matches(_plain(text), list(candidates), n=3, cutoff=0.5)
    return "; nearest: " + ", ".join(map(repr, close)) if close else ""


def _nearest_part(pattern: str, paths: Sequence[str]) -> str:
    """For a pattern that is much shorter than the paths it means: the part of it that none has."""
    having = {part: path for path in reversed(paths) for part in path.split("/")}
    for part in re.findall(r"\w+", _plain(pattern)):
        close = [] if part in having else difflib.get_close_matches(part, having, n=1)
        if close:
            return f"; no path has {part!r}; {having[close[0]]!r} has {close[0]!r}"
    return ""


def _plain(pattern: str) -> str:
    """The pattern without its operators."""
    return re.sub(r"\\(.)|[\[\](){}^$?+*|]|\.(?=[*+])", r"\1", pattern)


def _no_match(pattern: str, paths: Sequence[str]) -> str:
    message = f"the pattern {pattern!r} matches no parameter"
    if not paths:
        return f"{message}: the tree has none"
    if hint := correction(pattern, paths):
        return f"{message}: {hint}"
    return message + (
        nearest(pattern, paths)
        or _nearest_part(pattern, paths)
        or f"; the parameters are {paths[0]!r} … {paths[-1]!r}"
    )


def _listed(patterns: Sequence[str]) -> Sequence[str]:
    # A bare string is a sequence of one-letter patterns, none of which would be meant.
    if isinstance(patterns, str):
        raise ValueError(
            f"patterns must be a list, got the text {patterns!r}: write [{patterns!r}]"
        )
    return patterns


@functools.lru_cache(maxsize=4096)
def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        hint = "; anything is '.*'" if pattern.startswith("*") else ""
        raise ValueError(
            f"the pattern {pattern!r} is not a regular expression: {error}{hint}"
        ) from None


def _join(keys: Iterable[Any]) -> str:
    return "/".join(map(_name, keys))


def _name(key: Any) -> str:
    match key:
        case DictKey(key=name) | FlattenedIndexKey(key=name) | GetAttrKey(name=name):
            return str(name)
        case SequenceKey(idx=index):
            return str(index)
    return str(key)


def _keys(tree: Tree, above: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """The keys of every leaf, without those that boxes add. Boxes may stand in one another."""
    for keys, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_box)[0]:
        if not _is_box(node):
            yield (*above, *keys)
            continue
        for _, inside in jax.tree_util.tree_flatten_with_path(
            node, is_leaf=functools.partial(operator.is_not, node)
        )[0]:
            yield from _keys(inside, (*above, *keys))


def _is_box(node: Any) -> bool:
    # By name, since flax is not imported here: half a second, and users of Equinox do not have it.
    return any(
        (cls.__name__ == "Variable" and cls.__module__.startswith("flax.nnx"))
        or (cls.__name__ == "AxisMetadata" and cls.__module__.startswith("flax.core"))
        for cls in type(node).__mro__
    )
