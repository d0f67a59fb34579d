"""Evaluates a pretrained student on held-out pictures: retrieval, grounding, labels."""
