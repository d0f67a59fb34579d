"""A spaCy pipeline by name or folder, with a digest of its bytes."""

from __future__ import annotations

from collections.abc import Sequence

import spacy
from spacy.language import Language

from boxless.errors import BoxlessError
from sharding.writing.atomic import sha256_file, sha256_of


def load_pipeline(name: str, *, said: str, exclude: Sequence[str] = ()) -> tuple[Language, str]:
    """The pipeline and its digest, of the folder's own bytes: two that were trained at home share
    name and version.

    name: an installed package's, or a folder. said: the recipe's key for it, for messages.
    ValueError where spaCy cannot load it.
    """
    try:
        nlp = spacy.load(name, exclude=exclude)
    except (OSError, ValueError) as error:
        raise BoxlessError(
            f"{said} is {name}, which spaCy cannot load ({error}); expected an installed pipeline "
            "or its folder."
        ) from error
    files = {
        path.relative_to(nlp.path).as_posix(): sha256_file(path)
        for path in sorted(nlp.path.rglob("*"))
        if path.is_file()
    }
    return nlp, sha256_of(files)
