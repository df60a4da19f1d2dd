"""What is in a plan: of one stage of a run and one batch, on devices that need not be here."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from jaxft.base.nested import flatten
from jaxft.experiment.decide import frozen_blocks
from jaxft.experiment.planned_config import SETTLED, assumed
from jaxft.experiment.planned_leaves import leaves_of
from jaxft.experiment.prepared import Prepared
from jaxft.experiment.stages import Stage
from jaxft.optim import by_path, merge
from jaxft.planning.estimate import estimate
from jaxft.planning.hardware import Chip
from jaxft.planning.hlo import Collective, by_kind, collectives
from jaxft.planning.holding import bytes_of, kept_bytes, leaf_bytes, width_of
from jaxft.planning.least import Leaf, gathered, least
from jaxft.planning.plan import Plan
from jaxft.planning.topology import Topology
from jaxft.planning.whole_slice import as_compiled
from jaxft.tasks.contract import Contrastive
from jaxft.tasks.vocabulary_loss import BUDGET
from jaxft.training.parallel import Parallel

_GRADIENT = 4  # bytes of a number of a gradient, which is summed in float32 as parameters are
_KEY = jax.ShapeDtypeStruct((), jax.eval_shape(lambda: jax.random.key(0)).dtype)


def chunks(prepared: Prepared, parallel: Parallel, shapes: dict[str, Any]) -> int:
    """How often the loop over a vocabulary's logits runs where every token counts, on each device."""
    ids = shapes.get("decoder_input_ids", shapes.get("input_ids"))
    vocabulary = getattr(prepared.architecture.limits, "vocabulary", 0)
    if ids is None or not vocabulary:
        return 1
    tokens = math.prod(ids.shape) / parallel.shards / prepared.config.train.accumulate
    return max(1, math.ceil(tokens / max(1, BUDGET // vocabulary)))


@dataclasses.dataclass(frozen=True)
class World:
    """What was compiled, for which machine.

    shapes: of the batch, placed.
    """

    prepared: Prepared
    parallel: Parallel
    topology: Topology
    chip: Chip
    stage: Stage
    shapes: dict[str, Any]

    def plan(self, flops: float, compiled: Any, trips: int, seconds: dict[str, float]) -> Plan:
        """All but what the run costs, and advice.

        Args:
          flops: of the products, of all devices.
          compiled: a `jax.stages.Compiled`; None: nothing was compiled.
          trips: see `chunks`.
        """
        prepared, config = self.prepared, self.prepared.config
        values = flatten(config)
        minimum = self.least()
        found = as_compiled(minimum, self.topology, self.mesh)
        if compiled and self.parallel.mesh is not None:
            found = collectives(compiled.as_text(), self.mesh, unknown_trips=trips)
        said = _compiler(compiled)
        memory = self._memory(said)
        devices = self.topology.devices
        held = sum(memory[name] for name in ("trainable", "frozen", "slots")) + memory["trainable"]
        guess = estimate(
            self.chip, flops=flops / devices, dtype=config.model.dtype, held=held, found=found,
            mesh=self.mesh, hosted=self.topology.hosted,
        )  # fmt: skip
        decided = prepared.decisions.totals
        return Plan(
            task=config.task, model=config.model.path, note=prepared.architecture.note,
            topology=self.topology.name, kind=self.topology.kind, chip=self.chip.name,
            devices=devices, hosted=self.topology.hosted, mesh=self.mesh, batch=self._batch(),
            dtype=config.model.dtype, remat=config.model.remat,
            parameters={
                **decided, "blocks": prepared.architecture.num_blocks,
                "frozen_blocks": self.frozen_blocks + 1,
            },
            memory=memory, compiler=said, held=self._held(), flops=flops,
            traffic=[_collective(one) for one in found if compiled], least=by_kind(minimum),
            estimate=dataclasses.asdict(guess), price=None, watts=None, steps=0,
            settled={f: values[f] for f in SETTLED} | {f"parallel.{a}": n for a, n in self.mesh.items()},
            given={f: values[f] for f in SETTLED},
            assumed=assumed(config, prepared.directory), notes=self._notes(compiled), advice=[],
            seconds=seconds,
        )  # fmt: skip

    @property
    def mesh(self) -> dict[str, int]:
        """Axis -> devices; {} without a mesh."""
        return {} if self.parallel.mesh is None else dict(self.parallel.mesh.shape)

    @property
    def frozen_blocks(self) -> int:
        """Depth up to which nothing is differentiated, -1 where all is."""
        still = self.stage.frozen | self.stage.held
        return frozen_blocks(self.prepared.architecture, still)

    def least(self) -> tuple[Collective, ...]:
        """See `planning.least`."""
        config = self.prepared.config
        batch = self._batch()
        return least(
            self._leaves(), self.mesh, lowest=self.frozen_blocks + 1,
            tokens=batch["tokens"] or batch["examples"], width=_GRADIENT,
            compute=width_of(config.model.dtype), accumulate=config.train.accumulate,
        )  # fmt: skip

    def _leaves(self) -> list[Leaf]:
        params = by_path(self.stage.state.params)
        trained = {path for path, leaf in params.items() if leaf is not None}
        return leaves_of(self.prepared, self.prepared.decisions.placements, trained)

    def activations(self, *, remat: bool) -> float:
        """Bytes a device that the forward pass keeps for the backward one, of one microbatch; 0 where the
        loss looks at all examples together."""
        if isinstance(self.prepared.task, Contrastive):
            return 0.0
        parts, whole = self.stage.step.keywords, self.stage.state  # type: ignore[attr-defined]
        how = dataclasses.replace(parts["forward"].keywords["how"], remat=remat)
        accumulate = self.prepared.config.train.accumulate
        batch = {
            name: jax.ShapeDtypeStruct((x.shape[0] // accumulate, *x.shape[1:]), x.dtype)
            for name, x in self.shapes.items()
        }

        def loss(params: Any, rest: Any) -> Any:
            frozen, stats, batch, key = rest
            trees = (params, frozen) if stats is None else (params, frozen, stats)
            return parts["loss"](parts["forward"](merge(*trees), batch, key, how=how), batch)[0]

        def bare(tree: Any) -> Any:
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)

        rest = (bare(whole.frozen), bare(whole.stats), batch, _KEY)
        cut = self.parallel.shards * self.mesh.get("context", 1)
        return kept_bytes(loss, bare(whole.params), rest) / cut

    def _batch(self) -> dict[str, int]:
        config = self.prepared.config
        rows = next(iter(self.shapes.values())).shape[0]
        length = self.shapes["input_ids"].shape[1] if "input_ids" in self.shapes else 0
        answers = self.shapes.get("decoder_input_ids")
        beside = 0 if answers is None else answers.shape[1]
        return {
            "examples": config.train.batch_size, "rows": rows, "length": length,
            "tokens": rows * (length + beside), "accumulate": config.train.accumulate,
        }  # fmt: skip

    def _memory(self, said: dict[str, float]) -> dict[str, float]:
        state = self.stage.state
        parts = {
            "trainable": bytes_of(state.params), "frozen": bytes_of(state.frozen),
            "slots": bytes_of(state.opt_state), "statistics": bytes_of(state.stats),
            "others": bytes_of((state.step, state.hparams, self.shapes)),
        }  # fmt: skip
        remat = self.prepared.config.model.remat
        kept, block = self.activations(remat=remat), 0.0
        if said:
            needed = said["arguments"] + said["results"] - said["donated"] + said["temporaries"]
            others = max(0.0, needed - sum(parts.values()) - kept)
            kept = min(kept, needed - sum(parts.values()))
        else:
            plain = self.activations(remat=False) if remat else kept
            blocks = self.prepared.architecture.num_blocks - max(self.frozen_blocks, 0)
            # The backward pass of a block needs about as much again as the block keeps, and this where it is
            # computed anew.
            block = plain / max(1, blocks) * (1 + remat)
            width = width_of(self.prepared.config.model.dtype)
            # Logits of a chunk of tokens, with their gradient.
            chunk = 8 * BUDGET if getattr(self.prepared.architecture.limits, "vocabulary", 0) else 0
            whole = gathered(self._leaves(), self.mesh, compute=width)
            others = parts["trainable"] + whole + chunk + block
            needed = sum(parts.values()) + kept + others
        return {
            **parts, "activations": kept, "temporaries": others, "needed": needed,
            "available": float(self.chip.memory), "block": block,
        }  # fmt: skip

    def _held(self) -> list[list[float]]:
        """[depth, bytes of trainable parameters, of frozen ones, of slots] a device."""
        state, depths = self.stage.state, self.prepared.architecture.depths
        rows: dict[int, list[float]] = {}
        for column, tree in ((0, state.params), (1, state.frozen)):
            for path, leaf in by_path(tree).items():
                if leaf is not None and path in depths:
                    rows.setdefault(depths[path], [0.0] * 3)[column] += leaf_bytes(leaf)
        whole = sum(row[0] for row in rows.values())
        slots = bytes_of(state.opt_state)
        for row in rows.values():
            row[2] = slots * row[0] / whole if whole else 0.0
        return [[float(depth), *row] for depth, row in sorted(rows.items())]

    def _notes(self, compiled: Any) -> list[str]:
        prepared, config = self.prepared, self.prepared.config
        notes = []
        if compiled is None:
            notes.append("nothing was compiled: temporaries and traffic are estimates")
        if len(prepared.decisions.starts) > 1:
            notes.append(
                f"of {len(prepared.decisions.starts)} stages of unfreezing the one that trains most is here"
            )
        if config.data.cache_prefix != "off" and self.frozen_blocks >= 0:
            notes.append(
                "a frozen prefix is computed in every update: data.cache_prefix is not planned"
            )
        if self.topology.platform != "cpu":
            notes.append(
                f"seconds are a roofline at {self.chip.reached:.0%} of the peak, prices and peaks a dated "
                "table: good for comparing plans, not for a deadline"
            )
        return notes


def _compiler(compiled: Any) -> dict[str, float]:
    """What the compiler says of memory; {} where nothing was compiled."""
    if compiled is None:
        return {}
    said = compiled.memory_analysis()
    return {
        "arguments": float(said.argument_size_in_bytes),
        "results": float(said.output_size_in_bytes),
        "donated": float(said.alias_size_in_bytes),
        "temporaries": float(said.temp_size_in_bytes),
        "code": float(said.generated_code_size_in_bytes),
        "peak": float(getattr(said, "peak_memory_in_bytes", 0)),
    }


def _collective(one: Collective) -> dict[str, Any]:
    return {**dataclasses.asdict(one), "axes": list(one.axes)}
