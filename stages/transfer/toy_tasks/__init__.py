"""Files of the downstream tasks made from image shards, in the layouts of the originals."""
