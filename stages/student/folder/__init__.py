"""The layout of a student folder: what opens it, older names in it, errors where it is broken."""
