"""Operators of the detector: boxes, NMS, RoIAlign, RoIPool, resizing."""
