"""Ingest: raw corpora become image shards.

Data flow: a source (`toy`, `coco`, `nlvr`, `webdataset`) lists pictures with their captions,
`sample` reads each, `pictures` checks its bytes, `truth` fits its boxes, and `run` writes it into a
shard, or writes down why not.
"""
