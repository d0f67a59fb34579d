"""Runs the stages of a recipe: stage graph, stage state, run folder, launch plan, status, retry."""
