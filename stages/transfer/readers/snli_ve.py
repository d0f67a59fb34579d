"""SNLI-VE: snli_ve_SPLIT.jsonl, a hypothesis that a picture entails, contradicts, or neither."""

from __future__ import annotations

from pathlib import Path

from stages.transfer.example import Example
from stages.transfer.readers.records import ExampleCollector, TaskData, read_json_lines

LABELS = ("contradiction", "neutral", "entailment")
"""In the order of ALBEF, METER and LAVIS; predictions are names, so no score depends on it but
where logits tie."""
UNDECIDED = "-"


def read_snli_ve(
    path: Path, images: Path, *, text_premise: bool = False, max_missing: int = 0
) -> TaskData:
    """An example a pair id. The picture is images/ID.jpg, ID the Flickr30k id, which the generator
    writes as Flickr30K_ID and the parser reads as Flikr30kID.

    text_premise: whether the caption (sentence1) is read before the hypothesis. The task as it was
    defined leaves it out; some published scores do not. Rows without a majority label are counted
    and left out, as the generator does.
    """
    collector = ExampleCollector(max_missing=max_missing)
    for record in read_json_lines(path):
        if record.values.get("gold_label") == UNDECIDED:
            collector.drop("no majority label")
            continue
        flickr_id = record.identifier("Flickr30K_ID", "Flikr30kID").removesuffix(".jpg")
        hypothesis = record.text("sentence2")
        premise = record.text("sentence1") if text_premise else None
        text = (("question", premise), ("answer", hypothesis)) if premise else hypothesis
        collector.add(
            Example(
                id=record.text("pairID"),
                images=(images / f"{flickr_id}.jpg",),
                texts=(text,),
                label=record.choice("gold_label", LABELS)
                if "gold_label" in record.values
                else None,
            ),
            record.where,
        )
    return collector.done(path)
