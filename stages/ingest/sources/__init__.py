"""The corpora that ingest reads, a file a kind."""
