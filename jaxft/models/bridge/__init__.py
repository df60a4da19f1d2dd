"""PyTorch's own modules of transformers and timm, traced into JAX functions (extra `jaxft[bridge]`).

torch and torchax are imported here alone, and only when a bridged model is loaded.
"""
