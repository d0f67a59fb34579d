"""Writes files of downstream tasks in their original layouts, from image shards."""
