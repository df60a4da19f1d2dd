"""A small dated table of accelerators: what the vendors say, and what an hour costs.

Peaks are of dense products. Numbers of vendors hold for years; prices do not: they are list prices on
demand in the United States, noted in March 2026, and `--price` replaces them.
"""

from __future__ import annotations

import dataclasses

GIB = 2**30
# What a well-written program reaches of the peak in large products: model FLOPs utilisation between 35 % and
# 60 % is what is published of training (PaLM 46 %, arXiv:2204.02311; Llama 3 38 to 43 %, arXiv:2407.21783).
REACHED = 0.45


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
      name: what it is.
      platform: 'tpu', 'gpu' or 'cpu'.
      bfloat16, float32: FLOP/s at most, of products of such numbers as XLA computes them by default: TPUs
        take bfloat16 passes and GPUs TensorFloat-32 for float32.
      memory: bytes that a program may use.
      bandwidth: bytes/s of that memory.
      links: bytes/s that it can send to its neighbours, all links together, in one direction.
      network: bytes/s a device between hosts; 0: the links go on between them.
      price: US dollars an hour; None: not known here.
      watts: what it draws at most, without its host; None: the vendor does not say.
      dimensions: of a topology's shape.
      hosted: devices of a host, which is a process.
      reached: share of the peak that products are taken to reach.
    """

    name: str
    platform: str
    bfloat16: float
    float32: float
    memory: int
    bandwidth: float
    links: float
    network: float
    price: float | None
    watts: float | None
    dimensions: int
    hosted: int
    reached: float = REACHED

    def peak(self, dtype: str) -> float:
        """FLOP/s of products in a compute type."""
        return self.bfloat16 if dtype == "bfloat16" else self.float32


# TPUs: docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e ("key chip specifications": 197, 459 and 918 TFLOP/s,
# 16, 95 and 32 GB; interconnect 1,600, 4,800 and 3,200 Gbit/s a chip, both directions together). Of the
# memory the compiler leaves a part to the runtime: 15.75, 95.74 and 31.25 GiB are what it allows.
# Prices: cloud.google.com/tpu/pricing, us regions.
# GPUs: NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 SXM and B200 (dense, without sparsity; power is
# the module's limit); 8 of a host on NVLink, 400 Gbit/s a GPU between hosts (A100: 200) as in DGX systems.
# Prices: aws.amazon.com/ec2/pricing/on-demand, p5.48xlarge 98.32 and p4de.24xlarge 40.97 an hour, by 8.
CHIPS = {
    "v5e": Chip(
        "TPU v5e", "tpu", 197e12, 197e12, int(15.75 * GIB), 819e9, 100e9, 0, 1.20, None, 2, 4
    ),
    "v5p": Chip(
        "TPU v5p", "tpu", 459e12, 459e12, int(95.74 * GIB), 2765e9, 300e9, 0, 4.20, None, 3, 4
    ),
    "v6e": Chip(
        "TPU v6e", "tpu", 918e12, 918e12, int(31.25 * GIB), 1600e9, 200e9, 0, 2.70, None, 2, 4
    ),
    "a100": Chip(
        "A100 SXM 80GB", "gpu", 312e12, 156e12, int(79.2 * GIB), 2039e9, 300e9, 25e9, 5.12, 400, 2, 8
    ),
    "h100": Chip(
        "H100 SXM 80GB", "gpu", 989e12, 494e12, int(79.1 * GIB), 3350e9, 450e9, 50e9, 12.29, 700, 2, 8
    ),
    "h200": Chip(
        "H200 SXM", "gpu", 989e12, 494e12, int(139.8 * GIB), 4800e9, 450e9, 50e9, None, 700, 2, 8
    ),
    "b200": Chip(
        "B200 SXM", "gpu", 2250e12, 1125e12, int(178.4 * GIB), 7700e9, 900e9, 50e9, None, 1000, 2, 8
    ),
}  # fmt: skip
