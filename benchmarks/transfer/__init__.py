"""Students: downstream tasks, retrieval, time of one picture to a score."""
