"""Makes the ObjectSource that a recipe names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sharding.format.catalog import load_manifest, read_catalog
from sharding.reading.sample_reader import OpenTar, read_info
from stages.detector.device import pick_device
from stages.detector.transformers_config import TransformersConfig
from stages.distill.config import DistillConfig
from stages.distill.inference.pipeline import InferencePipeline
from stages.distill.object_source import Detector, ObjectSource
from stages.tf32 import check_tf32


def make_object_source(
    config: DistillConfig, folder: Path, images: Path | None = None
) -> ObjectSource:
    """The teacher of `config`; `folder` is that of the run's own, `images` that of the image
    shards, which teacher "truth" needs.

    Raises what reading it raises, a ValueError in each case that a user can fix.
    """
    if config.teacher == "features":
        from stages.distill.precomputed.join import PrecomputedObjects

        assert config.features is not None
        return PrecomputedObjects(config.features, index_folder=folder / "features")
    if config.teacher == "truth":
        from stages.distill.truth_objects import TruthObjects

        assert images is not None
        return TruthObjects(images)
    if config.transformers is not None and config.transformers.prompts == "captions":
        assert images is not None
        return _prompted(config, config.transformers, images)
    # Alone in single precision, a picture has nothing to wait for among others of its size.
    batch_size = 1 if config.precision == "fp32" else config.batch_size
    return InferencePipeline(
        _make_detector(config, folder), batch_size=batch_size, num_decoders=config.num_decoders
    )


def _prompted(config: DistillConfig, model: TransformersConfig, images: Path) -> InferencePipeline:
    """A detector that is prompted with the phrases of each picture's captions."""
    from stages.detector.transformers_teacher import load_transformers
    from stages.distill.text.caption_prompts import CaptionPrompts, caption_labels
    from stages.distill.text.phrases import make_chunker

    labels = caption_labels(read_captions(images), most=model.max_caption_labels)
    chunker = make_chunker(config, labels.names, (), log=print)
    return InferencePipeline(
        load_transformers(model, pick_device(), labels),
        batch_size=1,
        num_decoders=config.num_decoders,
        prompts=CaptionPrompts(chunker),
    )


def read_captions(images: Path) -> Iterator[str]:
    """The captions of every picture of the image shards."""
    for shard in read_catalog(images).shards:
        source = OpenTar(images / shard.tar)
        for entry in load_manifest(images / shard.tar, shard).samples:
            yield from read_info(source, entry)["captions"]


def _make_detector(config: DistillConfig, folder: Path) -> Detector:
    if config.teacher == "detectron2":
        from stages.detector.detectron2_teacher import load_detectron2

        assert config.detectron2 is not None
        return load_detectron2(config.detectron2, pick_device())
    if config.teacher == "transformers":
        from stages.detector.transformers_teacher import load_transformers

        assert config.transformers is not None
        return load_transformers(config.transformers, pick_device())
    from stages.detector.predictor import Teacher
    from stages.detector.teacher_folder import load_teacher

    check_tf32("distill.precision", config.precision)
    teacher = load_teacher(folder)
    if not isinstance(teacher, Teacher):
        return teacher
    return teacher.with_settings(
        precision=config.precision,
        score_threshold=config.score_threshold,
        min_objects=config.min_objects,
        max_objects=config.max_objects,
        bucket_px=config.bucket_px,
    )
