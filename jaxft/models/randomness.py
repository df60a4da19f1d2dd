"""Whether a forward pass of training has anything random in it."""

import jax
from jax.extend.core import Var

from jaxft.models.contract import Architecture, Pass
from jaxft.models.family import Batch


def draws(architecture: Architecture, batch: Batch, frozen_blocks: int = -1) -> bool:
    """Whether what it gives depends on its key: it has dropout, or leaves branches out.

    Traced, so that it is known of any module, and nothing is computed. What is traced as one operation of
    several inputs counts as depending on all of them.

    Args:
        frozen_blocks: see `Pass`.
    """
    how = Pass(frozen_blocks=frozen_blocks)
    key = jax.eval_shape(lambda: jax.random.key(0))
    program = jax.make_jaxpr(lambda key, params: architecture.apply(params, batch, key, how))(
        key, architecture.whole
    ).jaxpr
    needed = {x for x in program.outvars if isinstance(x, Var)}
    for operation in reversed(program.eqns):
        if not needed.isdisjoint(operation.outvars):
            needed.update(x for x in operation.invars if isinstance(x, Var))
    return program.invars[0] in needed
