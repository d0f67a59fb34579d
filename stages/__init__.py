"""What each stage does, in running order: ingest, distill, pretrain, transfer; `student` is shared.

A stage imports `sharding`, `stages.progress` and `stages.student`, and no other stage. What joins
them lives in `pipeline`.
"""
