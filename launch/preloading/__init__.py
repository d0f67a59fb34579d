"""Forks ranks from a process that has imported their modules, so that a restart is fast."""
