"""The teacher: speed of its parts, and what it leaves in object shards."""
