"""A page with attention and predictions of a student for pictures and texts."""
