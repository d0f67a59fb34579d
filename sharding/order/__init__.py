"""The order of training samples as a pure function of seed, epoch and position."""
