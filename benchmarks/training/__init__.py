"""Pretraining: time of a step, loss curves, elastic ranks, the dictionary."""
