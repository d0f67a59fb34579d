"""10,000 random predictions a task, drawn from Python's own generator: what the official evaluators
scored for the numbers in `test_official_scores`."""

from __future__ import annotations

import random

NUM = 10_000
ANSWERS = """yes|no|Yes|no.|2|two|Two|none|0|a dog|dog|the dog|an apple|apple|dogs|don't|dont|DONT|it's|its|
red|red, white|red white|red,white|1,000|1000|1, 000|3.5|3 . 5|5.|U.S.|us|left-right|left right|left/right|
black & white|black and white|o'clock|oclock|2 o clock|ten|10|what's|whats|(big)|big|"big"|t-shirt|t shirt|
tshirt|somebody'd|somebodyd|yes\tno|yes no|dog\n|@home|home|50%|50 %|a|an|the|man's|mans|not|can't|cant""".split(
    "|"
)
TYPES = ("yes/no", "number", "other")
ASKED = ("what is", "is the", "how many", "none of the above")


def vqa() -> tuple[list[dict], dict[int, str]]:
    """Annotations of ten answers each, and the predicted answers by question id."""
    draw = random.Random("vqa")
    annotations, answers = [], {}
    for number in range(NUM):
        pool = [draw.choice(ANSWERS) for _ in range(draw.choice((1, 2, 2, 3, 10)))]
        given = [draw.choice(pool) for _ in range(10)]
        annotations.append(
            {
                "question_id": number,
                "image_id": number // 3,
                "question_type": draw.choice(ASKED),
                "answer_type": draw.choice(TYPES),
                "multiple_choice_answer": given[0],
                "answers": [
                    {"answer": a, "answer_confidence": "yes", "answer_id": i + 1}
                    for i, a in enumerate(given)
                ],
            }
        )
        answers[number] = draw.choice(pool) if draw.random() < 0.7 else draw.choice(ANSWERS)
    return annotations, answers


def nlvr2() -> tuple[dict[str, str], dict[str, str]]:
    """Labels and predictions by identifier; predictions in any case, or no label at all."""
    draw = random.Random("nlvr2")
    names = [f"{split}-{s}-{pair}-{n}" for split in ("dev", "test1") for s in range(250)
             for pair in range(5) for n in range(4)]  # fmt: skip
    labels = {name: draw.choice(("True", "False")) for name in names}
    return labels, {name: _said(draw, label) for name, label in labels.items()}


def nlvr() -> tuple[dict[str, str], dict[str, str]]:
    """Labels by identifier of the picture, six a sentence's example, and predictions."""
    draw = random.Random("nlvr")
    labels, predictions = {}, {}
    for n in range(NUM // 24):
        for m in range(4):
            label = draw.choice(("true", "false"))
            for order in range(6):
                labels[f"{n}-{m}-{order}"] = label
                predictions[f"{n}-{m}-{order}"] = _said(draw, label)
    return labels, predictions


def _said(draw: random.Random, label: str) -> str:
    if draw.random() < 0.85:
        return draw.choice((label, label.lower(), label.upper()))
    return draw.choice(("true", "false", "False", "maybe", "1", " true"))


def vcr() -> tuple[list[list[float]], list[list[float]], list[int], list[int]]:
    """Scores of four answers, and of four rationales, with ties; and both labels."""
    draw = random.Random("vcr")
    rows = [[[draw.randrange(6) / 8 for _ in range(4)] for _ in range(2)] for _ in range(NUM)]
    answers, rationales = [row[0] for row in rows], [row[1] for row in rows]
    labels = [[draw.randrange(4) for _ in range(NUM)] for _ in range(2)]
    return answers, rationales, labels[0], labels[1]


def retrieval() -> tuple[list[list[float]], list[int]]:
    """Scores [40, 250] without a tie, and each text's picture: five to eight texts a picture."""
    draw = random.Random("retrieval")
    picture_of = sorted([*range(40)] * 5 + [draw.randrange(40) for _ in range(50)])
    order = [*range(40 * 250)]
    draw.shuffle(order)
    scores = [[order[250 * n + m] / 16384 for m in range(250)] for n in range(40)]
    for m, n in enumerate(picture_of):
        scores[n][m] += draw.choice((0, 0, 0, 0.25, 0.5)) + (m + 1) / 2**23
    return scores, picture_of


def snli_ve() -> tuple[list[str], list[list[float]]]:
    """Labels, and scores of (contradiction, neutral, entailment) without a tie."""
    draw = random.Random("snli_ve")
    names = ("contradiction", "neutral", "entailment")
    labels, scores = [], []
    for _ in range(NUM):
        label = draw.randrange(3)
        row = [draw.random() for _ in range(3)]
        row[label] += draw.choice((0.0, 0.5))
        labels.append(names[label])
        scores.append(row)
    return labels, scores
