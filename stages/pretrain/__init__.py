"""Pretraining: object shards in, a student out (`run.py`).

data        positions in the order of the shards -> augmented, collated, masked batches
objectives  one file an objective: what it masks, its loss, its metrics
caches      outputs of frozen networks, computed once
model.py    the module that is trained: a student with its objectives
"""
