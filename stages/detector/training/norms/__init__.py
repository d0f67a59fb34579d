"""Normalisation layers for training a teacher."""
