"""Tar shards and nothing else: schema, write, manifest, catalog, read, verify, order, stream."""
