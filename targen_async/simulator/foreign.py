"""Passages that no grammar wrote: sentences, clauses and names, taken as they stand."""

import re
from collections.abc import Sequence

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'\u2019\u201d)]*\s+(?=[\"'\u2018\u201c(]?[A-Z0-9])")
_NAME = re.compile(
    r"[A-Z][\w'\u2019-]*[\w](?:(?: (?:of|the|de|van|von|al|and the))? [A-Z][\w'\u2019-]*[\w])*"
)
_WORD = re.compile(r"[^\W\d_]{4,}")
_PLAIN_START = re.compile(
    "(?:the|an?|it|its|there|his|her|their|my|our|this|that|these|those|some|many|most|all|no|in"
    "|on|at|by|for|from|with|after|before|when|while|if|as|but|and|so|each|every|both|two|three"
    "|several|he|she|they|we|you|one|not|since|because|although|however|under|over|during)",
    re.IGNORECASE,
)
_EDGES = " .!?,;:-\u2013\u2014\"'\u2018\u2019\u201c\u201d()[]"


def sentences(passage: str) -> list[str]:
    """The sentences of a passage, with blanks made single."""
    text = " ".join(passage.split())
    return [part for part in _SENTENCE_END.split(text) if part]


def clause(sentence: str, most: int) -> str:
    """At most `most` words of a sentence as part of another one.

    No mark at its ends, no capital that only the start of the sentence gave it.
    """
    text = " ".join(sentence.split()[:most]).strip(_EDGES)
    first, _, _ = text.partition(" ")
    return text[:1].lower() + text[1:] if _PLAIN_START.fullmatch(first) else text


def holds(passage: str, part: str) -> bool:
    """Whether part of a sentence stands in a passage, letter by letter but for case."""
    whole, wanted = (" ".join(text.casefold().split()) for text in (passage, part))
    at = whole.find(wanted) if wanted else -1
    while at >= 0:
        end = at + len(wanted)
        if not (whole[at - 1 : at].isalnum() or whole[end : end + 1].isalnum()):
            return True
        at = whole.find(wanted, at + 1)
    return False


def names(passage: str) -> list[str]:
    """What reads like a name, in the order of first mention; words where there are few names.

    None of them holds another one's text, so that each has one place in the passage.
    """
    found: dict[str, None] = {}
    for sentence in sentences(passage):
        for match in _NAME.finditer(sentence):
            name = match.group()
            first, _, rest = name.partition(" ")
            if match.start() == 0 and _PLAIN_START.fullmatch(first):
                name = rest
            if len(name) > 2 and name in passage:
                found[name] = None
    kept = _apart(list(found), [])
    if len(kept) < 6:
        kept += _apart(sorted(set(_WORD.findall(passage)), key=passage.find), kept)[: 6 - len(kept)]
    return sorted(kept, key=passage.find)


def _apart(texts: Sequence[str], kept: Sequence[str]) -> list[str]:
    """Those texts that neither stand in nor hold one taken before."""
    taken: list[str] = []
    for text in texts:
        if not any(text in other or other in text for other in (*kept, *taken)):
            taken.append(text)
    return taken
