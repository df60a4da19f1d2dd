"""A config measured on folds of its data, or under several seeds."""
