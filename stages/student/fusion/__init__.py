"""The fusion's first and last layer where only a part of them is needed."""
