"""Looks inside a trained student: attention, guesses, codes of the dictionary."""
