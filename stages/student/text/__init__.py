"""The tokenizer, and texts of several parts."""
