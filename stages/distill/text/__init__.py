"""Noun phrases of captions, and their similarity to object labels."""
