"""`boxless view`: what is in a shard, drawn on its pictures, as a page or as a contact sheet."""
