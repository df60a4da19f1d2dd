"""Many runs of one config that differ here and there. A single run knows nothing of it."""
