"""The stage that looks: image shards go in, object shards come out.

`teach.py` trains a teacher where the pictures have boxes (`boxless teach`), `teacher/` is the
network itself, `run.py` lets a teacher look at every picture once and writes what it sees
(`boxless distill`). A sample's way there: `flow.py` (`decode.py`, `batches.py`, `careful.py`) or
`features/` -> `label.py` (`phrases.py`, `similarity.py` with `embedders.py`) -> object shard;
`seer.py` says what is asked of a teacher, `seers.py` makes the recipe's. The stage before is
`stages/ingest`, the one after `stages/pretrain`.
"""
