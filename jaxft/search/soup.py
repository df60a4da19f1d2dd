"""Averages of the weights of several trained models. No files, no devices.

Model soups: Wortsman et al. 2022, arXiv:2203.05482. Weights can be averaged where the models lie in one
basin: trained from the same weights, of which the new head is a part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Weights = Mapping[str, np.ndarray]


def uniform(members: Sequence[Weights], source: Weights) -> dict[str, np.ndarray]:
    """The mean of each leaf, in its own dtype; summed in float64.

    Args:
      members: what differs from `source`: path -> leaf; not all need have the same paths.
      source: the leaves that a member which lacks one has.
    """
    paths = dict.fromkeys(path for one in members for path in one)
    found = {}
    for path in paths:
        total = sum(np.asarray(one.get(path, source[path]), np.float64) for one in members)
        found[path] = np.asarray(total / len(members), np.asarray(source[path]).dtype)
    return found


def greedy(count: int, value: Callable[[tuple[int, ...]], float]) -> tuple[tuple[int, ...], float]:
    """The greedy soup: each member in turn stays if the soup is not worse with it.

    Args:
      count: of members, which are numbered from the best by itself on.
      value: of the soup of these members on held-out data; more is better.

    Returns:
      Its members and its value, which is at least that of the first alone.
    """
    members: tuple[int, ...] = (0,)
    best = value(members)
    for candidate in range(1, count):
        tried = (*members, candidate)
        if (found := value(tried)) >= best:
            members, best = tried, found
    return members, best
