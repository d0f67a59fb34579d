"""Readers of the downstream tasks' ORIGINAL annotation files, one file a format."""
