"""Ingest: raw corpora become image shards.

Data flow: a source (`sources/`, one file a kind of corpus) lists pictures with their captions,
`sample.py` reads each, `stages/picture.py` checks its bytes, `truth.py` fits its boxes, `splits.py`
and `evaluation_pictures.py` choose its split, and `run.py` writes it into a shard, or its failure
with the reason into the manifest.
"""
