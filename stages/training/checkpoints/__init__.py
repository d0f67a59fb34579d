"""Saves, loads and prunes training checkpoints, gathers whole weights, and reshards ZeRO."""
