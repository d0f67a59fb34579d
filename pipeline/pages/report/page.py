"""Assembles report/index.html of a run: one page without network, scripts or other files.

Scores come first, then the parts in the order of the data flow. What a run has not left yet is said
in a word; a file of it that is damaged costs its own part of the page only.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from xml.etree.ElementTree import Element

from pipeline import __version__
from pipeline.pages.document import document
from pipeline.pages.html import h, html_text
from pipeline.pages.report.ablation import ablation_section
from pipeline.pages.report.data import data_section, read_catalog_or_none
from pipeline.pages.report.galleries.attention import attention_section
from pipeline.pages.report.galleries.captions import captions_section
from pipeline.pages.report.galleries.codebook import codes_section
from pipeline.pages.report.galleries.grounding import heat_section
from pipeline.pages.report.galleries.retrieval import gallery_section
from pipeline.pages.report.scores import scores_section
from pipeline.pages.report.tasks import tasks_section
from pipeline.pages.report.teacher import teacher_section
from pipeline.pages.report.timeline import timeline_section
from pipeline.pages.report.training_curves import learning_section
from pipeline.pages.sections import Section, count, missing
from pipeline.pages.thumbnails import Pictures
from pipeline.recipe.recipe import Recipe, load_recipe
from pipeline.runner.run_folder import RunError, RunFolder
from pipeline.runner.stages.stage_graph import stages_of
from pipeline.runner.stages.state import read_done
from sharding.writing.atomic import write_text


def write_report(run: RunFolder, out: Path | None = None) -> Path:
    """Write the page, to `out` or into the run folder; returns its path. RunError when there is no
    run in that folder, or the folder cannot be written and there is no `out`."""
    if not run.recipe.is_file():
        raise RunError(f"{run.root} is not a run folder: it has no {run.recipe.name}.")
    page = out or run.report / "index.html"
    text = html_text(_page(run, load_recipe(run.recipe)))
    try:
        write_text(page, text)
    except OSError as error:
        if out or error.errno not in (errno.EROFS, errno.EACCES):
            raise
        raise RunError(
            f"{run.root} cannot be written ({error.strerror}); name another place for the page: "
            f"boxless report {run.root} --out FILE.html"
        ) from error
    return page


def _page(run: RunFolder, recipe: Recipe) -> Element:
    pictures = Pictures(run)
    parts: list[tuple[str, str, Callable[[], Section | None]]] = [
        ("scores", "Scores", lambda: scores_section(run)),
        ("timeline", "Stages", lambda: timeline_section(run, recipe)),
        ("data", "Data", lambda: data_section(run)),
        ("teacher", "Teacher", lambda: teacher_section(run, pictures)),
        ("learning", "Training curves", lambda: learning_section(run)),
        ("heat", "Phrase grounding", lambda: heat_section(run, pictures)),
        ("attention", "Attention", lambda: attention_section(run, pictures)),
        ("codes", "Visual dictionary", lambda: codes_section(run, pictures)),
        ("gallery", "Text-to-image retrieval", lambda: gallery_section(run, pictures)),
        ("captions", "Image-to-text retrieval", lambda: captions_section(run, pictures)),
        ("tasks", "Downstream tasks", lambda: tasks_section(run)),
        ("ablation", "Ablation", lambda: ablation_section(run)),
        ("recipe", "Recipe", lambda: _recipe_section(run)),
    ]
    drawn = [_whole_or_word(name, title, draw) for name, title, draw in parts]
    sections = [section for section in drawn if section is not None]
    links = [h("li", h("a", {"href": f"#{s.name}"}, s.title)) for s in sections]
    body = h(
        "body",
        h("a", {"class": "skip", "href": "#scores"}, "Skip to the scores"),
        _header(run, recipe),
        h("nav", {"aria-label": "Parts of this page"}, h("ul", *links)),
        h("main", *(section.element() for section in sections)),
        h("footer", h("p", f"Written by Boxless {__version__} from the run folder.")),
    )
    return document(f"{recipe.name} · Boxless", body)


def _whole_or_word(name: str, title: str, draw: Callable[[], Section | None]) -> Section | None:
    """A part of the page; a word in its place where a file has not the form that its stage gives
    it (edited, or of another version)."""
    try:
        return draw()
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        words = f"This part cannot be drawn: {type(error).__name__}: {error}"
        return Section(name=name, title=title, content=(missing(words),))


def _header(run: RunFolder, recipe: Recipe) -> Element:
    description = recipe.description.strip()
    return h(
        "header",
        h("p", {"class": "brand"}, "Boxless"),
        h("h1", recipe.name),
        h("p", {"class": "about"}, description) if description else None,
        h("p", {"class": "lead"}, _lead(run, recipe)),
        _progress(run, recipe),
    )


_OBJECTS = {
    "run": "A Faster R-CNN teacher detects the objects of {pictures} once, offline.",
    "detectron2": "A detectron2 teacher detects the objects of {pictures} once, offline.",
    "transformers": "A detector of transformers detects the objects of {pictures} once, offline.",
    "features": "The objects of {pictures} come from files of detections.",
    "truth": "The true boxes of {pictures} stand for those of a teacher.",
}
"""By `distill.teacher`, where objects come from."""


def _lead(run: RunFolder, recipe: Recipe) -> str:
    """What the run is, in two sentences."""
    catalog = read_catalog_or_none(run.images)
    num_pictures = sum(shard.num_ok for shard in catalog.shards) if catalog else 0
    pictures = f"{count(num_pictures)} pictures" if num_pictures else "every picture"
    return (
        f"{_OBJECTS[recipe.distill.teacher].format(pictures=pictures)} "
        "A student, a CNN and a Transformer, learns from whole pictures and captions, with these "
        "objects as supervision; at inference it needs no boxes."
    )


def _progress(run: RunFolder, recipe: Recipe) -> Element | None:
    """A word on what is still to come; nothing for a run at its end."""
    to_come = [kind.name for kind in stages_of(recipe) if read_done(run, kind) is None]
    if not to_come:
        return None
    return h("p", {"class": "missing"}, f"Not finished. Remaining: {', '.join(to_come)}.")


def _recipe_section(run: RunFolder) -> Section:
    text = run.recipe.read_text("utf-8")
    folded = h(
        "details",
        h("summary", "Every value of this run"),
        h("pre", {"tabindex": "0"}, text),
    )
    return Section(name="recipe", title="Recipe", content=(folded,))
