"""The conductor: a recipe becomes stage runs. The only command line, ``boxless``, lives here."""

__version__ = "0.1.0"
