"""What is computed about a run: metrics of predictions, and the report of a run directory."""
