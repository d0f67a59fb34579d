"""Transfer: what a student can do, on tasks and on pictures it never saw."""
