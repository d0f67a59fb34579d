"""`boxless serve`: a page in the browser that uses a student."""
