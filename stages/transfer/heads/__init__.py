"""Heads of downstream tasks, and their inputs."""
