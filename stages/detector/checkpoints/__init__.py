"""Reads detector checkpoints of detectron2, bottom-up attention and others."""
