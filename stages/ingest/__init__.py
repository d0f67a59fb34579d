"""Ingest: raw corpora become image shards.

The way of a picture through here: a source (`toy`, `coco`, `nlvr`, `webdataset`) lists it with its
captions, `sample` reads it, `pictures` looks at its bytes, `truth` fits its boxes, and `run` writes
it into a shard, or writes down why not.
"""
