"""Reads samples of local and remote shards, in training order."""
