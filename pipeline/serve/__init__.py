"""`boxless serve`: a page in the browser for trying a student."""
