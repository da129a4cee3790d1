"""Who and what the texts name, by a spaCy model instead of rules."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
from scipy import sparse

from targen_async.analysis.mentions import Forms, Mentions, Phrase
from targen_async.analysis.rows import Rows
from targen_async.analysis.tokens import WORD
from targen_async.errors import UserError

KIND_OF: Mapping[str, str] = {
    "GPE": "countries",
    "NORP": "nationalities",
    "PERSON": "names",
    "EVENT": "events",
    "PRODUCT": "products",
}
"""OntoNotes' names of entities, which spaCy's English models use, to kinds."""


@cache
def open_tagger(model: str) -> Any:  # noqa: ANN401
    """A spaCy pipeline by name or folder. Raises UserError where it is not there."""
    try:
        import spacy
    except ImportError as error:
        raise UserError(
            f"named entities by {model} need spaCy: pip install 'targen-async[entities]'; without "
            "--entities they are found by rules"
        ) from error
    try:
        tagger = spacy.load(model)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"the spaCy model {model} is not installed or cannot be loaded: `python -m spacy "
            f"download {model}` gets spaCy's own; without --entities rules are used"
        ) from error
    if not {"ner", "entity_ruler"} & set(tagger.pipe_names):
        raise UserError(f"the spaCy model {model} finds no entities (it has no `ner`)")
    return tagger


def tag_entities(rows: Rows, model: str, countries: Forms, groups: Forms) -> dict[str, Mentions]:
    """Mentions of the kinds of `KIND_OF`, from the spans that the model finds.

    A place is a country if the whole span is one of its names, so that Romania is none of
    Oman's. Nationalities go by their entry where they have one, all else as it is written.
    """
    known: Mapping[str, Forms] = {
        "countries": _folded(countries),
        "nationalities": _folded(groups),
    }
    found: dict[str, list[tuple[int, str]]] = {kind: [] for kind in KIND_OF.values()}
    for place, doc in enumerate(open_tagger(model).pipe(rows.texts)):
        for span in doc.ents:
            kind = KIND_OF.get(span.label_)
            words = _words(span.text)
            if kind is None or not words:
                continue
            entry = known.get(kind, {}).get(words)
            if entry is None and kind != "countries":
                entry = " ".join(span.text.split())
            if entry is not None:
                found[kind].append((place, entry))
    return {kind: _mentions(pairs, len(rows)) for kind, pairs in found.items()}


def _words(text: str) -> Phrase:
    words = WORD.findall(text.lower().removesuffix("'s").removesuffix("\u2019s"))
    return tuple(words[1:] if words[:1] == ["the"] else words)


def _folded(forms: Forms) -> Forms:
    return {tuple(word.lower() for word in phrase): entry for phrase, entry in forms.items()}


def _mentions(pairs: Iterable[tuple[int, str]], rows: int) -> Mentions:
    pairs = sorted(set(pairs))
    entries = tuple(sorted({entry for _, entry in pairs}))
    places = {entry: place for place, entry in enumerate(entries)}
    at = np.array([place for place, _ in pairs], dtype=np.int64)
    columns = np.array([places[entry] for _, entry in pairs], dtype=np.int64)
    shape = (rows, len(entries))
    return Mentions(
        entries=entries, found=sparse.csr_matrix((np.ones(len(at)), (at, columns)), shape=shape)
    )
