"""HTML pages that stand alone: the run report, the shard viewer and the student viewer."""
