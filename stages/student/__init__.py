"""The student, a CNN and a Transformer, shared by pretraining and transfer.

network.py    the network: `encode_image` (CNN), `fuse` (Transformer), and its heads (heads.py)
pretrained_model.py   what transformers asks of a model: initial weights, loading, saving
processor.py  pictures and texts -> its inputs
vision        the CNN, the grid of cells, SOHO's neck and visual dictionary
text          tokenizer, token types
fusion        the Transformer where less than all of it has to run
checkpoints   published weights: ResNets, BERT, SOHO's
folder        student folders as transformers has them, renamed weights, errors
"""
