"""A Faster R-CNN in plain PyTorch, one part a file.

A picture goes through the files in this order: `resize.py` -> `backbone.py`, `resnet.py` or
`fpn.py` -> `anchors.py` and `rpn.py` (proposals) -> `pooler.py`, `roi_align.py` or `roi_pool.py`
-> `heads.py` and `res5.py` (features, classes, boxes, attributes) -> `choose.py` and `nms.py` ->
`detect.py` (one array of objects a picture). `faster_rcnn.py` joins the parts and `net_config.py`
says how large and of which kind each is. `matching.py` and `losses.py` are for training only, as
are `training_set.py` and `checkpoint.py`; `folder.py` keeps a teacher on disk and `evaluate.py`
scores it.

Weights from elsewhere: `convert.py` -> `torch_files.py` or `pickles.py` (a file's arrays) ->
`weights.py` (a net of ours), by the rules of `families.py`.

Everything between backbone and heads takes a list of levels (a feature map and its stride), one
level for a C4 model and several for a pyramid. Backgrounds, weights and rules follow detectron2
(https://github.com/facebookresearch/detectron2): background is the last class, box deltas are a
class's own, non-maximum suppression is by class.
"""
