"""Runs a recipe: its stages in order, each in a run folder, started by the command line
`boxless`."""

__version__ = "0.2.0"

OUTPUT_VERSION = "0.1.0"
"""The first version whose stages make the outputs of this one. It is part of what shapes a stage's
output, so raise it to `__version__` when a stage makes other outputs of an unchanged recipe."""
