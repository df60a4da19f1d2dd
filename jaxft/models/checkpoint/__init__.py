"""Checkpoints on disk: config.json, tensors, and which tensor is which parameter."""
