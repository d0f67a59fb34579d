"""Writes shards: the tar first, the manifest last, atomically."""
