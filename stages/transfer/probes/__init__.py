"""Probes of a trained student: attention, predictions, codes of the dictionary."""
