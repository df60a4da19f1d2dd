"""A study over a space of configs, in a storage that several processes share."""
