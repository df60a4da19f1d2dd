"""Names of machines: `v5e:4x4`, `h100:8x8` (hosts x devices), `cpu:8`; and their devices, to compile for."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re
from collections.abc import Sequence
from typing import Any

from jaxft.base.nearest import nearest
from jaxft.planning.gpu_target import TARGETS, target_text
from jaxft.planning.hardware import CHIPS

CPU = "cpu"
EXAMPLES = "v5e:4x4, v5p:4x4x4, v6e:16x16, h100:8x8 (hosts x GPUs), cpu, cpu:8"
_MOST = 4096  # devices
_NEEDED = {
    "tpu": ("libtpu", "pip install 'jaxft[plan]' (libtpu, 170 MB, needs no TPU)"),
    "gpu": (
        "jax_cuda12_plugin",
        "pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt, of jax's version (460 MB, needs no GPU)",
    ),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Where a run is to be.

    Attributes:
      name: as given.
      kind: a key of `CHIPS`, or 'cpu'.
      shape: of a TPU slice in chips; of GPUs (hosts, devices of a host); of the CPU (devices,).
    """

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def platform(self) -> str:
        """'tpu', 'gpu' or 'cpu'."""
        return CPU if self.kind == CPU else CHIPS[self.kind].platform

    @property
    def devices(self) -> int:
        """How many."""
        return math.prod(self.shape)

    @property
    def hosted(self) -> int:
        """Devices of one process, at most."""
        if self.platform == "gpu":
            return self.shape[1]
        return self.devices if self.kind == CPU else min(self.devices, CHIPS[self.kind].hosted)


def parse_topology(name: str) -> Topology:
    """Which machine a name means.

    Raises:
      ValueError: none; with what is allowed, and the nearest.
    """
    kind, _, sizes = name.strip().lower().partition(":")
    kinds = (*CHIPS, CPU)
    if kind not in kinds:
        raise ValueError(
            f"--topology={name!r}: there is no {kind!r}{nearest(kind, kinds)}; there are "
            f"{', '.join(kinds)}, as in {EXAMPLES}"
        )
    if kind == CPU and not sizes:
        return Topology(name, kind, (1,))
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes):
        raise ValueError(f"--topology={name!r} has no size; write as in {EXAMPLES}")
    shape = tuple(map(int, sizes.split("x")))
    if kind != CPU and CHIPS[kind].platform == "gpu" and len(shape) == 1:
        shape = (1, *shape)
    dimensions = 1 if kind == CPU else CHIPS[kind].dimensions
    if len(shape) != dimensions:
        example = {1: "cpu:8", 2: f"{kind}:4x4", 3: f"{kind}:4x4x4"}[dimensions]
        raise ValueError(f"--topology={name!r} has {len(shape)} sizes, not {dimensions}: {example}")
    if math.prod(shape) > _MOST:
        raise ValueError(f"--topology={name!r} has {math.prod(shape)} devices; at most {_MOST}")
    if kind != CPU and CHIPS[kind].platform == "gpu" and shape[1] > CHIPS[kind].hosted:
        raise ValueError(
            f"--topology={name!r} has {shape[1]} GPUs in a host, which has at most "
            f"{CHIPS[kind].hosted}: {kind}:{max(1, math.prod(shape) // 8)}x8"
        )
    return Topology(name, kind, shape)


def check_installed(topology: Topology) -> None:
    """Raises ValueError, with what to install, where what compiles for it is not here."""
    if topology.platform == CPU:
        return
    module, how = _NEEDED[topology.platform]
    if importlib.util.find_spec(module) is None:
        raise ValueError(
            f"--topology={topology.name} needs {module}, which is not installed: {how}"
        )


def environment(topology: Topology) -> dict[str, str]:
    """Variables of a process that compiles for it, to be set before jax is imported: its own backend is the
    CPU, and libtpu looks for no TPU, does not mind another process, and says nothing of it."""
    own = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    if topology.platform == "tpu":
        own |= {
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_ID": "0",
            "TPU_WORKER_HOSTNAMES": "localhost", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3",
        }  # fmt: skip
    return own


def open_devices(topology: Topology) -> Sequence[Any]:
    """Its devices, in a process with `environment`. Of the CPU that of this process, so many of them.

    Raises:
      ValueError: there is no such slice.
    """
    import jax
    from jax.experimental import topologies

    if topology.platform == CPU:
        return jax.devices()[: topology.devices]
    if topology.platform == "gpu":
        shape = "x".join(map(str, (1, *topology.shape)))
        found = topologies.get_topology_desc(
            platform="cuda", target_config=target_text(TARGETS[topology.kind]), topology=shape
        )
        return found.devices
    shape = "x".join(map(str, topology.shape))
    whole: dict[str, Any] = {}
    if topology.devices == 1:  # a part of a host
        whole["chips_per_host_bounds"] = (1, 1, 1)
        shape = "x".join(["1"] * len(topology.shape))
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{topology.kind}:{shape}", **whole
        )
    except Exception as error:  # of libtpu: its kind differs between versions
        line = str(error).strip().splitlines()[0][:200]
        raise ValueError(
            f"--topology={topology.name}: libtpu knows no such slice of {topology.kind} ({line}); write "
            f"as in {EXAMPLES}"
        ) from error
    return found.devices
