"""The fusion's layers where only a part of what they compute is needed."""
