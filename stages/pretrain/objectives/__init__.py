"""The pretext tasks, one file each, named as the papers name them."""
