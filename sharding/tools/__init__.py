"""Tools over finished shards: index, verify, repair, repack."""
