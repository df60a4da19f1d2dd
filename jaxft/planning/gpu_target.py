"""What XLA must know of a GPU that is not here: a GpuTargetConfigProto, in text.

Facts of NVIDIA's tuning guides and device queries; the names of the fields are XLA's (stream_executor's
device_description.proto).
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Target:
    """One GPU.

    Attributes:
      name: as the driver says it.
      capability: major number of CUDA's compute capability.
      cores, units: streaming multiprocessors, and fp32 units of each.
      shared, shared_block: bytes of shared memory of a multiprocessor, and of a block that asks for it.
      memory, bandwidth, cache: bytes, bytes/s, bytes of L2.
      clock: GHz.
    """

    name: str
    capability: int
    cores: int
    units: int
    shared: int
    shared_block: int
    memory: int
    bandwidth: int
    cache: int
    clock: float


TARGETS = {
    "a100": Target("NVIDIA A100-SXM4-80GB", 8, 108, 64, 167936, 166912, 85100068864, 2039040000000,
                   41943040, 1.41),
    "h100": Target("NVIDIA H100 80GB HBM3", 9, 132, 128, 233472, 232448, 84942979072, 3352320000000,
                   52428800, 1.98),
    "h200": Target("NVIDIA H200", 9, 132, 128, 233472, 232448, 150109880320, 4800000000000, 62914560, 1.98),
    "b200": Target("NVIDIA B200", 10, 148, 128, 233472, 232448, 191514411008, 7672320000000, 132644864,
                   1.965),
}  # fmt: skip


def target_text(target: Target) -> str:
    """The proto of a target, as text."""
    fields = {
        "threads_per_block_limit": 1024, "threads_per_warp": 32, "shared_memory_per_block": 49152,
        "shared_memory_per_core": target.shared, "threads_per_core_limit": 2048,
        "core_count": target.cores, "fpus_per_core": target.units, "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535, "block_dim_limit_z": 65535, "memory_bandwidth": target.bandwidth,
        "l2_cache_size": target.cache, "clock_rate_ghz": target.clock,
        "device_memory_size": target.memory, "shared_memory_per_block_optin": target.shared_block,
        "registers_per_core_limit": 65536, "registers_per_block_limit": 65536,
        "thread_dim_limit_x": 1024, "thread_dim_limit_y": 1024, "thread_dim_limit_z": 64,
    }  # fmt: skip
    said = " ".join(f"{name}: {value}" for name, value in fields.items())
    return (
        f"gpu_device_info {{ {said} cuda_compute_capability {{ major: {target.capability} }} }} "
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } '
        f'device_description_str: "{target.name}"'
    )
