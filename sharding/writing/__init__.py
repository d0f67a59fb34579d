"""Writes shards: tar first, manifest last, atomically."""
