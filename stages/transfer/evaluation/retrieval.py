"""Image-to-text and text-to-image retrieval: recall at 1, 5, 10.

Every picture is scored with every text: by the image-text matching head (a full cross-encoder
matrix, as UNITER and ViLT do), or, where the student has a contrastive head, by that one, with the
matching head on a shortlist of the best (as ALBEF does).
Letters: N pictures, M texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sharding.format.schema import Sample
from stages.distributed import Ranks
from stages.progress import Progress
from stages.transfer.predictor import Predictor
from stages.transfer.retrieval_matrix import BEHIND, AllTexts, TextPasses, log_odds, shortlisted


def score_matrix(
    predictor: Predictor,
    samples: Sequence[Sample],
    texts: Sequence[str],
    *,
    shortlist: int = 0,
    itm_weight: float = 1.0,
    query_bank: bool = True,
    ranks: Ranks = Ranks(),
) -> torch.Tensor:
    """How well each text fits each picture: float [N, M].

    The matching head's log odds; with a contrastive head, its logits, to which `itm_weight` times
    those log odds are added where the text is among the `shortlist` best of the picture or the
    picture among those of the text (all others are ranked behind). The CNN runs once a picture. No
    score depends on what is computed beside it, nor on the number of ranks, which share the
    pictures out and all have all scores. `query_bank`: the contrastive head's logits are
    normalised by the student's bank of training pairs, where it has one. A collective.
    """
    known = TextPasses(predictor.student, predictor.tokenizer, texts)
    if predictor.student.contrastive_head is not None:
        return _contrast_matrix(
            predictor,
            samples,
            known,
            shortlist=shortlist,
            itm_weight=itm_weight,
            query_bank=query_bank,
            ranks=ranks,
        )
    rows, own, every = [], ranks.own(samples), AllTexts(predictor.student, known)
    with _progress("retrieval", own, ranks) as progress:
        for sample in own:
            rows.append(every.log_odds(predictor.cells(sample)))
            progress.advance()
    return torch.stack(ranks.interleaved(rows))


def _progress(title: str, own: Sequence[Any], ranks: Ranks) -> Progress:
    """Of rank 0's share, which is like the others'."""
    return Progress(title, total=len(own), unit="pictures", show=ranks.is_first)


def _contrast_matrix(
    predictor: Predictor,
    samples: Sequence[Sample],
    known: TextPasses,
    *,
    shortlist: int,
    itm_weight: float,
    query_bank: bool,
    ranks: Ranks,
) -> torch.Tensor:
    student = predictor.student
    passes = known.of()
    own_vectors = [student.embed_texts(tokens) for _, tokens in ranks.own(passes)]
    vectors = torch.empty(known.num, student.config.itc_size)
    for (places, _), found in zip(passes, ranks.interleaved(own_vectors), strict=True):
        vectors[places] = found[: len(places)]
    seen, own = [], ranks.own(samples)
    with _progress("retrieval", own, ranks) as progress:
        for sample in own:
            seen.append(predictor.cells(sample))
            progress.advance()
    own_pictures = [student.embed_pictures(cells)[0] for cells in seen]
    compare = student.compare_without_hubs if query_bank else student.compare
    scores = compare(vectors, torch.stack(ranks.interleaved(own_pictures))).T
    if not shortlist:
        return scores
    listed = shortlisted(scores, shortlist)
    reranked = (scores + BEHIND * ~listed)[ranks.rank :: ranks.size]
    with _progress("re-ranking", own, ranks) as progress:
        for row, (of_row, cells) in enumerate(
            zip(listed[ranks.rank :: ranks.size], seen, strict=True)
        ):
            for places, tokens in known.of(of_row.nonzero()[:, 0].tolist()):
                odds = log_odds(student, cells, tokens)[: len(places)]
                reranked[row, places] += itm_weight * odds
            progress.advance()
    return torch.stack(ranks.interleaved(list(reranked)))


def _shown(wrong: list[int], right: list[int], num_shown: int) -> list[int]:
    """The first ones of both, in order: up to half that went wrong, more where too few went
    right."""
    wrong = wrong[: max(num_shown // 2, num_shown - len(right))]
    return sorted(wrong + right[: num_shown - len(wrong)])


def gallery(
    scores: torch.Tensor,
    picture_of: torch.Tensor,
    samples: Sequence[Sample],
    texts: Sequence[str],
    num_shown: int,
) -> list[dict]:
    """For the report: some texts with their five best pictures; up to half of them, the first ones
    that went wrong, so that a good student's page still shows what it gets wrong."""
    ranked = scores.argsort(dim=0, descending=True, stable=True)
    wrong = (ranked[0] != picture_of).nonzero()[:, 0].tolist()
    right = (ranked[0] == picture_of).nonzero()[:, 0].tolist()
    return [
        {
            "text": texts[text],
            "right": samples[int(picture_of[text])].key,
            "rank": ranked[:, text].tolist().index(int(picture_of[text])) + 1,
            "pictures": [
                {"key": samples[n].key, "score": round(float(scores[n, text]), 4)}
                for n in ranked[:5, text].tolist()
            ],
        }
        for text in _shown(wrong, right, num_shown)
    ]


def captions_found(
    scores: torch.Tensor,
    picture_of: torch.Tensor,
    samples: Sequence[Sample],
    texts: Sequence[str],
    num_shown: int,
) -> list[dict]:
    """For the report, the other way round: some pictures with their five best texts, and the best
    of their own with its rank; up to half of them, the first ones that went wrong."""
    ranked = scores.argsort(dim=1, descending=True, stable=True)
    owner = picture_of[ranked]
    own = owner == torch.arange(len(samples))[:, None]
    have = own.any(dim=1)
    wrong = (have & ~own[:, 0]).nonzero()[:, 0].tolist()
    right = (have & own[:, 0]).nonzero()[:, 0].tolist()
    found = []
    for n in _shown(wrong, right, num_shown):
        rank = int(own[n].int().argmax())
        found.append(
            {
                "key": samples[n].key,
                "rank": rank + 1,
                "right": texts[int(ranked[n, rank])],
                "texts": [
                    {
                        "text": texts[m],
                        "score": round(float(scores[n, m]), 4),
                        "right": bool(picture_of[m] == n),
                    }
                    for m in ranked[n, :5].tolist()
                ],
            }
        )
    return found
