"""Recipes: settings of a run as frozen dataclasses, read from YAML with overrides."""
