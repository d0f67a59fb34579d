"""Metrics of the downstream tasks, equal to the official scripts. No model, no files."""
