"""From a config to a run and its directory: where the parts are put together, for all commands."""
