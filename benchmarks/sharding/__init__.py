"""Shards: speed, scale, order, damages, and drills with workers that die."""
