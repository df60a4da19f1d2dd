"""What an update needs on a machine that is not here: memory, work, traffic, time."""
