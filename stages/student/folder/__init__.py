"""The layout of a student folder: Auto classes, renamed weights, errors."""
