"""A page about what a student makes of pictures and texts: `command` conducts."""
