"""The student, a CNN and a Transformer, shared by pretraining and transfer."""
