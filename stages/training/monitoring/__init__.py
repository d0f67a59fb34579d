"""Metrics, profiles and health checks of a training."""
