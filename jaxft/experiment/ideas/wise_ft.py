"""`optim.wise_ft`: a mixture of the trained and the pretrained weights counts (Wortsman et al. 2022)."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxft import optim
from jaxft.config import ConfigDict
from jaxft.experiment.ideas.idea import Idea, Weighed


def _weights(c: ConfigDict, weighed: Weighed, whole: Any) -> Any:
    """One more copy of the model while this lasts."""
    places = jax.tree.map(lambda x: x.sharding, whole)
    mix = jax.jit(optim.wise_ft, out_shardings=places)
    mixed = mix(weighed.parallel.replicate(weighed.source()), whole, np.float32(c.wise_ft))
    # A new head has nothing pretrained to be mixed with, and what never trained keeps its bits.
    kept = {*weighed.initialised, *optim.by_path(weighed.state.frozen)}
    kept |= optim.by_path(weighed.state.stats).keys()
    trained = optim.by_path(whole)
    return optim.path_map(lambda path, x: trained[path] if path in kept else x, mixed)


WISE_FT = Idea(
    asked=lambda c: c.wise_ft is not None,
    weights=_weights,
    says=lambda c, before: (
        f"{c.wise_ft:.0%} of {before} and {1 - c.wise_ft:.0%} of the pretrained weights"
    ),
)
