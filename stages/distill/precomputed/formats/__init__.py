"""Readers of precomputed region features, a file a format."""
