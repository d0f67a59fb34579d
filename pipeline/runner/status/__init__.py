"""The progress of a run, and how much of its time was useful."""
