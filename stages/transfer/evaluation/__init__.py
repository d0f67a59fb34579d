"""Scores of a pretrained student on pictures it never saw: retrieval, grounding, labels."""
