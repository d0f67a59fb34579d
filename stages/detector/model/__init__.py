"""The network of the Faster R-CNN, a part a file."""
