"""Ranks that are forks of a process with their modules in it, so that a restart imports nothing."""
