"""Scores teachers on pictures with true boxes: AP50, attribute accuracy, COCO's metrics."""
