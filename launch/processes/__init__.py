"""Runs the ranks of one node: starts them, watches them, passes signals on and ends them."""
