"""Distillation: image shards in, object shards out.

`run.py` lets a teacher detect the objects of every picture once and writes them (`boxless
distill`). Data flow: `inference/` (a detector; `decode.py`, `batch_plan.py`) or `precomputed/`
(features of other projects) -> `label.py` (phrases and similarities of `text/`) -> object shard.
`object_source.py` is the interface of teachers, `make_object_source.py` makes the recipe's.
"""
