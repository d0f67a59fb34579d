"""Pretraining: object shards in, a student out. The objectives live here."""
