"""Outputs of frozen networks, kept in memory from one epoch to the next."""
