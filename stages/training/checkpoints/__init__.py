"""Saving and loading a run, whole weights out of it, and ZeRO's parts for other ranks."""
