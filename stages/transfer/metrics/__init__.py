"""Scores of the downstream tasks, equal to those of the official scripts. No model, no files."""
