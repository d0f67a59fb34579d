"""A Faster R-CNN in plain PyTorch, one part a file.

A picture goes through the files in this order: `resize.py` -> `backbone.py` -> `anchors.py` and
`rpn.py` (proposals) -> `pooler.py` and `roi_align.py` -> `heads.py` (classes, boxes, attributes)
-> `nms.py` -> `detect.py` (one array of objects a picture). `faster_rcnn.py` joins the parts;
`matching.py` and `losses.py` are for training only, as are `training_set.py` and `checkpoint.py`;
`folder.py` keeps a trained teacher on disk and `evaluate.py` scores it.

Everything between backbone and heads takes a list of levels (a feature map and its stride), one
level for a C4 model and several for a pyramid. Backgrounds, weights and rules follow detectron2
(https://github.com/facebookresearch/detectron2): background is the last class, box deltas are a
class's own, non-maximum suppression is by class.
"""
