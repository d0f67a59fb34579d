"""The stages of a run: graph, entry points, external inputs, state and figures."""
