"""Saves and loads training checkpoints, gathers whole weights, and reshards ZeRO."""
