"""The update and what surrounds it: one pure step, three ways to compile it, checkpoints, logs."""
