"""Normalisation while a teacher is trained."""
