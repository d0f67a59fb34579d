"""Precomputed region features as a teacher: files of boxes, features and classes.

A picture's way: its key or image_id becomes an id (ids), the id a place in a file (index), the
bytes there a record (the file named after its format), the record an array of objects (objects).
Nothing here decodes a picture.
"""
