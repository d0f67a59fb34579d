"""Faults on a small cluster."""
