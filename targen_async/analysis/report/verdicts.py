"""What a reader is told first: the checks, and how the data stand beside the other set."""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Literal

from msgspec import Struct

from targen_async.analysis.analyze import Analysis, Measures, estimates
from targen_async.analysis.crossfit import Unfit
from targen_async.analysis.entities import KINDS, TAGGED_KINDS
from targen_async.analysis.estimate import Estimate, difference

Arrow = Literal["up", "down", "both", "apart", "same", "none"]
State = Literal["fault", "clear", "unknown"]
SURE = 0.95
"""How often an area in which nothing differs shall say so."""


class Check(Struct, frozen=True, kw_only=True):
    """One kind of fault: found, looked for and not found, or not measured."""

    kind: str
    title: str
    state: State
    text: str


class Line(Struct, frozen=True, kw_only=True):
    """One measure; texts are numbers as a reader sees them. `sure`: 1 or -1 where the difference
    leaves out 0, by its side, though all measures of the area are looked at (Bonferroni): a 95 %
    interval of one in twenty leaves it out by chance."""

    name: str
    data: str
    other: str = ""
    apart: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    sure: int = 0
    word: str = ""


class Area(Struct, frozen=True, kw_only=True):
    """Measures that answer one question, and the answer."""

    title: str
    arrow: Arrow
    verdict: str
    about: str
    lines: tuple[Line, ...]


class _Measure(Struct, frozen=True):
    """How a measure is read. `up` and `down`: what a higher or a lower value of the data says."""

    name: str
    up: str
    down: str
    percent: bool = False
    counts: bool = True


_DIFFICULTY = {
    "difficulty.v_information": _Measure("V-information, bits", "easier", "harder"),
    "difficulty.accuracy": _Measure("accuracy of the model", "easier", "harder", percent=True),
    "difficulty.share_below_0": _Measure("rows with PVI below 0", "harder", "easier", percent=True),
    "cartography.confidence": _Measure("confidence in training", "easier", "harder"),
    "cartography.variability": _Measure("variability in training", "harder", "easier"),
    "cartography.correctness": _Measure("right in training", "easier", "harder", percent=True),
}
_VARIETY = {
    **{
        f"diversity.distinct_{n}": _Measure(f"distinct-{n}", "more varied", "less varied")
        for n in (2, 1, 3)
    },
    "diversity.mtld": _Measure("MTLD, words", "more varied", "less varied"),
    "diversity.self_bleu": _Measure("Self-BLEU", "less varied", "more varied"),
    "diversity.compression_ratio": _Measure("compression ratio", "less varied", "more varied"),
    "diversity.vendi": _Measure("Vendi score", "more varied", "less varied"),
    "diversity.mean_cosine": _Measure("mean cosine", "less varied", "more varied"),
    "diversity.nearest_cosine": _Measure("nearest cosine", "less varied", "more varied"),
    "duplicates.share": _Measure("near duplicates", "less varied", "more varied", percent=True),
}
_LENGTH = {
    "diversity.words_per_row": _Measure("words per row", "longer", "shorter"),
    "diversity.vocabulary_sum": _Measure("vocabulary sum", "larger", "smaller", counts=False),
}
_NAMED = {
    f"bias.{kind}.rows_per_1000": _Measure(f"{kind}, rows of 1,000", "more", "fewer")
    for kind in (*KINDS, *TAGGED_KINDS)
}
_GENDER = {
    "bias.gender.share_female": _Measure("share female", "more female", "more male", percent=True)
}
_TITLES = {
    "label_noise": "Wrong labels",
    "overlap": "Rows that stand elsewhere too",
    "near_duplicates": "Near duplicates",
    "position": "Position of the answer",
    "length": "Length gives the label away",
    "one_field": "One field is enough",
}
_Numbers = Mapping[str, Estimate]


# ---- checks


def checks_of(analysis: Analysis) -> list[Check]:
    """Every fault that was found, then every kind that was not, and why if it was not measured."""
    found = [
        Check(kind=one.kind, title=_title(one.kind), state="fault", text=one.text)
        for one in analysis.findings
    ]
    told = {one.kind for one in found}
    others = [
        Check(kind=kind, title=_title(kind), state=state, text=text)
        for kind, (state, text) in _unfound(analysis).items()
        if kind not in told
    ]
    return found + sorted(others, key=lambda check: check.state == "unknown")


def _title(kind: str) -> str:
    return _TITLES.get(kind, kind.replace("_", " ").capitalize())


def _unfound(analysis: Analysis) -> dict[str, tuple[State, str]]:
    data = analysis.data
    noise, artefacts = data.labels.noise, data.artefacts
    told: dict[str, tuple[State, str]] = {}
    if isinstance(noise, Unfit):
        told["label_noise"] = ("unknown", noise.reason)
    else:
        told["label_noise"] = ("clear", f"{with_interval(noise.share, percent=True)} estimated")
    if analysis.overlaps:
        files = f"{len(analysis.overlaps)} other file{'s' * (len(analysis.overlaps) > 1)}"
        told["overlap"] = ("clear", f"none, in {files}")
    else:
        told["overlap"] = ("unknown", "no file to look in: name one with --evaluation")
    share = with_interval(data.duplicates.share, percent=True)
    told["near_duplicates"] = ("clear", f"{share} of the rows")
    if isinstance(artefacts.position, Unfit):
        told["position"] = ("unknown", artefacts.position.reason)
    elif artefacts.position is not None:
        told["position"] = ("clear", "each position is right about as often")
    if artefacts.length:
        gains = [length.gain for length in artefacts.length.values()]
        told["length"] = ("clear", _most(gains))
    fitted = [one.gain for one in artefacts.one_field.values() if not isinstance(one, Unfit)]
    if fitted:
        told["one_field"] = ("clear", _most(fitted))
    elif artefacts.one_field:
        reason = next(one for one in artefacts.one_field.values() if isinstance(one, Unfit)).reason
        told["one_field"] = ("unknown", reason)
    return told


def _most(gains: Sequence[Estimate]) -> str:
    most = max(gains, key=lambda gain: gain.value)
    return f"at most {max(most.value, 0) * 100:.1f} points better than guessing"


# ---- areas


def areas_of(analysis: Analysis) -> list[Area]:
    """The data by themselves, or beside the other set where there is one."""
    against = analysis.against
    data = against.data if against else analysis.data
    own = estimates(data)
    theirs = estimates(against.other) if against else None
    embedding = data.diversity.embedding
    found = [
        _area("Difficulty", _DIFFICULTY, own, theirs, "no harder and no easier", _model(data)),
        _area("Variety", _VARIETY, own, theirs, "as varied", f"cosines and Vendi by {embedding}"),
        _area("Length", _LENGTH, own, theirs, "as long", "the vocabulary sum grows with length"),
        _area("Labels", _NOISE, own, theirs, "as many wrong labels", _noise_model(data)),
        _named(analysis, own, theirs),
        _area("Gender", _GENDER, own, theirs, "as many women and men", "by words, see Bias"),
    ]
    return [area for area in found if area is not None]


_NOISE = {
    "labels.noise.share": _Measure("wrong labels", "more wrong labels", "fewer wrong labels", True)
}


def _model(data: Measures) -> str:
    return "" if isinstance(data.difficulty, Unfit) else f"to a model: {data.difficulty.model}"


def _noise_model(data: Measures) -> str:
    return "" if isinstance(data.labels.noise, Unfit) else "estimated by confident learning"


def _area(
    title: str,
    measures: Mapping[str, _Measure],
    own: _Numbers,
    theirs: _Numbers | None,
    same: str,
    about: str,
    more: int = 0,
) -> Area | None:
    """`more`: how many comparisons the answer rests on besides those of the measures."""
    there = [path for path in measures if path in own and (theirs is None or path in theirs)]
    if not there:
        return None
    lines = {
        path: _line(measures[path], own[path], theirs[path] if theirs else None, len(there) + more)
        for path in there
    }
    arrow, verdict = _verdict(measures, lines, same) if theirs else ("none", "")
    return Area(title=title, arrow=arrow, verdict=verdict, about=about, lines=tuple(lines.values()))


def _line(measure: _Measure, own: Estimate, theirs: Estimate | None, together: int) -> Line:
    if theirs is None:
        told = with_interval(own, percent=measure.percent)
        return Line(name=measure.name, data=told, value=own.value, low=own.low, high=own.high)
    apart = difference(own, theirs)
    sure = _side(apart, together)
    return Line(
        name=measure.name,
        data=number(own.value, percent=measure.percent),
        other=number(theirs.value, percent=measure.percent),
        apart=with_interval(apart, percent=measure.percent, signed=True),
        value=apart.value,
        low=apart.low,
        high=apart.high,
        sure=sure,
        word=(measure.up if sure > 0 else measure.down) if sure else "",
    )


def _side(apart: Estimate, together: int) -> int:
    """1 or -1 where 0 lies outside of an interval so wide that of `together` such intervals all
    cover what they should in 95 of 100 cases; else 0."""
    if apart.low is None or apart.high is None:
        return 0
    alone, among = (NormalDist().inv_cdf(1 - (1 - SURE) / 2 / count) for count in (1, together))
    wider = among / alone
    above = apart.value - (apart.value - apart.low) * wider > 0
    below = apart.value + (apart.high - apart.value) * wider < 0
    return int(above) - int(below)


def _verdict(
    measures: Mapping[str, _Measure], lines: Mapping[str, Line], same: str
) -> tuple[Arrow, str]:
    """Which way the sure differences go; the words are those of the first measure."""
    first = next(iter(measures.values()))
    words = [line.word for path, line in lines.items() if measures[path].counts]
    ups, downs = words.count(first.up), words.count(first.down)
    if not ups and not downs:
        return "same", same
    if ups and downs:
        most, least = sorted(((ups, first.up), (downs, first.down)), reverse=True)
        told = f"{most[1]} by {most[0]}, {least[1]} by {least[0]} of {len(words)} measures"
        return "both", told
    word = first.up if ups else first.down
    of = f" by {ups or downs} of {len(words)} measures" if len(words) > 1 else ""
    return ("up" if ups else "down"), word + of


def _named(analysis: Analysis, own: _Numbers, theirs: _Numbers | None) -> Area | None:
    divergences = analysis.against.divergences if analysis.against else {}
    found = {kind: one for kind, one in divergences.items() if one is not None}
    about = "by lists of words, see Bias"
    area = _area("Who and what is named", _NAMED, own, theirs, "", about, len(found))
    if area is None or all(line.data == "0" and line.other in ("0", "") for line in area.lines):
        return None
    if analysis.against is None:
        return area
    together = len(area.lines) + len(found)
    apart = [kind for kind, one in found.items() if one.p_value <= (1 - SURE) / together]
    parts = {
        word: [line.name.partition(",")[0] for line in area.lines if line.word == word]
        for word in ("more", "fewer")
    }
    told = [f"{word} {_listed(kinds)}" for word, kinds in parts.items() if kinds]
    told += [f"other {_listed(apart)}"] if apart else []
    return Area(
        title=area.title,
        arrow="apart" if told else "same",
        verdict="; ".join(told) or "no more apart than by chance",
        about=area.about,
        lines=area.lines,
    )


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


# ---- numbers


def number(value: float, *, percent: bool = False, signed: bool = False) -> str:
    """Three digits that count, whole numbers from 1,000 on, a true minus. `percent` of a share;
    `signed`: of a difference, so points of a percentage."""
    plus = "+" if signed and value > 0 else ""
    if percent:
        unit = " points" if signed else "%"
        told = f"{value * 100:.1f}{unit}"
    elif abs(value) >= 999.5:
        told = f"{value:,.0f}"
    else:
        told = f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.4f}"
    if not told.strip("-0."):
        return "0"
    return plus + told.replace("-", "\u2212")


def with_interval(estimate: Estimate, *, percent: bool = False, signed: bool = False) -> str:
    """The value and its 95 % interval, which one row has not."""
    told = number(estimate.value, percent=percent, signed=signed)
    if estimate.low is None or estimate.high is None:
        return told
    low, high = (
        number(end, percent=percent, signed=signed) for end in (estimate.low, estimate.high)
    )
    return f"{told} ({low.removesuffix(' points')} to {high.removesuffix(' points')})"
