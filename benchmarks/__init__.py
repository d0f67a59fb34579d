"""Every figure that a document quotes, as a command; a folder an area."""
