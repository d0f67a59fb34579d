"""The stage that looks: image shards go in, object shards come out.

`teach.py` trains a teacher where the pictures have boxes (`boxless teach`), `teacher/` is the
network itself, `run.py` lets a teacher look at every picture once and writes what it sees (`boxless
distill`). A sample's way there: `inference/pipeline.py` (`decode.py`, `batches.py`,
`oom_fallback.py`) or `precomputed/` -> `label.py` (`text/phrases.py`, `text/similarity.py`) ->
object shard; `object_source.py` is the interface of teachers, `make_object_source.py` makes the
recipe's. The stage before is `stages/ingest`, the one after `stages/pretrain`."""
