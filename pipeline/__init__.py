"""Runs a recipe: its stages in order, each in a run folder, started by the command line `boxless`.

cli      the command line, a module a group of commands
recipe   recipes: dataclasses, YAML, overrides, renamed keys; recipes/ has the built-in ones
runner   which stages are due, their state, launch and retry
pages    HTML: the report of a run, shards with boxes drawn, a student's attention
serve    a web page for a student
export   students as ONNX, SOHO checkpoints or VL-InterpreT examples
"""

__version__ = "0.2.0"

OUTPUT_VERSION = "0.1.0"
"""The first version whose stages make the outputs of this one. It is part of what shapes a stage's
output, so raise it to `__version__` when a stage makes other outputs of an unchanged recipe."""
