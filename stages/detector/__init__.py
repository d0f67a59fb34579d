"""A Faster R-CNN in plain PyTorch, one part a file.

A picture goes through the files in this order: `ops/resize.py` -> `model/plain_backbone.py`,
`model/resnet.py` or `model/fpn.py` -> `model/anchors.py` and `model/rpn.py` (proposals) ->
`ops/pooler.py`, `ops/roi_align.py` or `ops/roi_pool.py` -> `model/box_heads.py`,
`model/res5_head.py` and `model/second_classifier.py` (features, classes, boxes, attributes) ->
`model/postprocess.py` and `ops/nms.py` -> `predictor.py` (one array of objects a picture).
`model/faster_rcnn.py` joins the parts and `net_config.py` has their sizes and kinds.
`teacher_folder.py` keeps a teacher on disk, `training/` trains one, `evaluation/` scores it.

Weights from elsewhere: `checkpoints/convert.py` -> `torch_files.py` or `pickles.py` (a file's
arrays) -> `weights.py` (a net of ours), by the rules of `families.py`.

Everything between backbone and heads takes a list of levels (a feature map and its stride), one
level for a C4 model and several for a pyramid. Background, weights and rules follow detectron2
(https://github.com/facebookresearch/detectron2): background is the last class, box deltas are a
class's own, non-maximum suppression is by class.
"""
