"""How far a run is, and how much of its time was useful."""
