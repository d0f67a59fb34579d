"""Lets any number of workers share the shards of a folder: claims, heartbeats, progress."""
