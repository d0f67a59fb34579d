"""`boxless view`: draws shards' objects on their pictures, as a page or a contact sheet."""
