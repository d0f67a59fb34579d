"""The heads of downstream tasks, and what they read."""
