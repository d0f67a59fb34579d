"""The stages of a run: their graph, how each is called, its inputs, its state and its figures."""
