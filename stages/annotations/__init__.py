"""Parsers of annotation files that both ingest and transfer read, and of true phrases in shards."""
