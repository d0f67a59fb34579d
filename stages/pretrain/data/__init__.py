"""From samples of object shards to the tensors of a micro-batch."""
