"""The student: the CNN + Transformer that pretraining teaches and transfer uses."""
