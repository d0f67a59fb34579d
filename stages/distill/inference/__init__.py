"""Runs a detector over the pictures of shards: decoding, batches, failures."""
