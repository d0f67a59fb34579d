"""Saves, loads and prunes training checkpoints, gathers full weights, and reshards ZeRO."""
