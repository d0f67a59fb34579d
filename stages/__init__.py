"""What each stage does: ingest, teach (detector), distill, pretrain, transfer.

Parts that stages share are the folders annotations, detector, student and training, and the files
beside this one. No stage imports another; `pipeline` joins them.
"""
