"""All measures of one data set, and of two beside each other, as one record: analysis.json."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import msgspec
from msgspec import Struct, field
from threadpoolctl import threadpool_limits

from targen_async.analysis.artefacts import Artefacts, Position, measure_artefacts
from targen_async.analysis.bias import Bias, Divergence, diverge, measure_bias
from targen_async.analysis.cartography import Cartography, map_of, measure_cartography
from targen_async.analysis.crossfit import Crossfit, Unfit, crossfit
from targen_async.analysis.difficulty import Difficulty, measure_difficulty, pvi_of
from targen_async.analysis.diversity import Diversity, measure_diversity
from targen_async.analysis.duplicates import Duplicates, measure_duplicates
from targen_async.analysis.embedding import open_encoder
from targen_async.analysis.entities import KINDS, TAGGED_KINDS, find_entities
from targen_async.analysis.estimate import Estimate, difference
from targen_async.analysis.findings import Finding, findings_of
from targen_async.analysis.labels import Gold, LabelQuality, likely_labels, measure_labels
from targen_async.analysis.mentions import Mentions
from targen_async.analysis.overlap import Overlap, measure_overlap
from targen_async.analysis.projection import Places, Projection, project
from targen_async.analysis.rows import Rows
from targen_async.analysis.tagger import open_tagger
from targen_async.analysis.trained import Trainer, crossfit_trained
from targen_async.errors import UserError
from targen_async.records import row_digest

VERSION = 3
"""Of analysis.json: raised when a field changes its meaning or goes."""
ANALYSIS, ROWS = "analysis.json", "rows.jsonl"
_DIGITS = 6

T = TypeVar("T")
P = ParamSpec("P")


class Measures(Struct, frozen=True, kw_only=True):
    """Every measure of one set of rows."""

    name: str
    rows: int
    sampled_from: int
    """How many there were before rows were drawn for equal sizes."""
    fields: tuple[str, ...]
    diversity: Diversity
    duplicates: Duplicates
    difficulty: Difficulty | Unfit
    cartography: Cartography | None
    """None for the fast default, which is not trained over epochs."""
    labels: LabelQuality
    bias: Bias
    artefacts: Artefacts


class Comparison(Struct, frozen=True, kw_only=True):
    """The data set and the other at equal sizes. `differences`: data set less other, by the path
    of the measure; where the interval covers 0 the two do not differ."""

    rows: int
    data: Measures
    other: Measures
    differences: Mapping[str, Estimate]
    divergences: Mapping[str, Divergence | None]


class Analysis(Struct, frozen=True, kw_only=True):
    """analysis.json; docs/analysis.md explains the fields."""

    version: int
    """`VERSION`; no other is read."""
    targen: str
    simulated: bool
    task: str
    random_seed: int
    findings: tuple[Finding, ...]
    data: Measures
    against: Comparison | None
    overlaps: tuple[Overlap, ...]
    projection: Projection
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What each measure took: the only part that differs between two equal commands."""


class RowNote(Struct, frozen=True, kw_only=True):
    """A line of rows.jsonl: what the measures say of one row."""

    key: str
    content: str
    """`row_digest`: of the fields and the label that were measured."""
    pvi: float | None
    likely: str | None
    """The label that it should have by confident learning; None where it has that."""
    cluster: str | None
    """Key of the first row of its cluster of near duplicates."""
    overlaps: bool
    confidence: float | None
    """Cartography, where a model was trained; so the next two."""
    variability: float | None
    correctness: float | None
    x: float | None
    """Place in the projection, if it was drawn for it; so `y`."""
    y: float | None


class Ways(Struct, frozen=True, kw_only=True):
    """How to measure."""

    random_seed: int = 0
    embeddings: str | None = None
    """A sentence-transformers name or folder; None for TF-IDF."""
    entities: str | None = None
    """A spaCy model; None for rules."""
    trainer: Trainer | None = None
    """Of the model of difficulty and label noise; None for the linear one."""
    gold: Gold | None = None
    """The true label of a simulated row."""
    say: Callable[[str], None] = lambda _: None
    """Told what takes long."""


class _Measured(Struct, frozen=True, kw_only=True):
    record: Measures
    entities: Mapping[str, Mentions]
    fit: Crossfit | Unfit
    clusters: Sequence[int]


class _Clock:
    """Seconds by measure."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, name: str, measure: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        start = time.perf_counter()
        found = measure(*args, **named)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return found


def analyze(
    rows: Rows,
    *,
    against: Rows | None = None,
    evaluations: Sequence[Rows] = (),
    ways: Ways | None = None,
) -> tuple[Analysis, list[RowNote]]:
    """Measure `rows`, beside `against` at equal sizes, and what they share with `evaluations`.

    Runs on one thread, a trainer aside: the linear algebra is small, and sums come out the same
    each time. Raises UserError where a model that is named cannot be loaded.
    """
    ways, clock = ways or Ways(), _Clock()
    seed = ways.random_seed
    # Before all else: a model that is not there is told at once.
    if ways.embeddings is not None:
        open_encoder(ways.embeddings)
    if ways.entities is not None:
        open_tagger(ways.entities)
    with threadpool_limits(1):
        own = _measure(rows, len(rows), clock, ways)
        comparison = _compare(rows, own, against, clock, ways) if against is not None else None
        others = ((against,) if against is not None else ()) + tuple(evaluations)
        shared = [clock.run("overlap", measure_overlap, rows, o, seed=seed) for o in others]
        projection, places = clock.run(
            "projection", project, rows, against, seed=seed, embeddings=ways.embeddings
        )
    overlaps = tuple(record for record, _ in shared)
    analysis = Analysis(
        version=VERSION,
        targen=metadata.version("targen-async"),
        simulated=rows.simulated,
        task=rows.task,
        random_seed=seed,
        findings=findings_of(
            own.record.labels, own.record.duplicates, own.record.artefacts, overlaps
        ),
        data=own.record,
        against=comparison,
        overlaps=overlaps,
        projection=projection,
        seconds=clock.seconds,
    )
    return analysis, _notes(rows, own, {int(at) for _, found in shared for at in found}, places)


def _measure(rows: Rows, sampled_from: int, clock: _Clock, ways: Ways) -> _Measured:
    seed = ways.random_seed
    clock.run("tokens", getattr, rows, "tokens")
    diversity = clock.run(
        "diversity", measure_diversity, rows, seed=seed, embeddings=ways.embeddings
    )
    duplicates, clusters = clock.run("duplicates", measure_duplicates, rows, seed=seed)
    if ways.trainer is None:
        fit = clock.run("crossfit", crossfit, rows, seed=seed)
    else:
        fit = clock.run("crossfit", crossfit_trained, rows, ways.trainer, seed=seed, say=ways.say)
    entities = clock.run("entities", find_entities, rows, ways.entities)
    record = Measures(
        name=rows.name,
        rows=len(rows),
        sampled_from=sampled_from,
        fields=rows.fields,
        diversity=diversity,
        duplicates=duplicates,
        difficulty=clock.run("difficulty", measure_difficulty, rows, fit, seed=seed),
        cartography=measure_cartography(fit, seed=seed),
        labels=clock.run("labels", measure_labels, rows, fit, seed=seed, gold=ways.gold),
        bias=clock.run("bias", measure_bias, rows, entities, seed=seed, model=ways.entities),
        artefacts=clock.run("artefacts", measure_artefacts, rows, seed=seed),
    )
    return _Measured(record=record, entities=entities, fit=fit, clusters=clusters.tolist())


# ---- two sets


def _compare(rows: Rows, own: _Measured, against: Rows, clock: _Clock, ways: Ways) -> Comparison:
    size, seed = min(len(rows), len(against)), ways.random_seed
    if len(rows) > size:
        own = _measure(rows.sample(size, seed), len(rows), clock, ways)
    other = _measure(against.sample(size, seed), len(against), clock, ways)
    a, b = estimates(own.record), estimates(other.record)
    return Comparison(
        rows=size,
        data=own.record,
        other=other.record,
        differences={name: difference(a[name], b[name]) for name in a if name in b},
        divergences={
            kind: clock.run(
                "divergence", diverge, own.entities[kind], other.entities[kind], seed=seed
            )
            for kind in (*KINDS, *TAGGED_KINDS)
            if kind in own.entities
        },
    )


def estimates(measures: Measures) -> dict[str, Estimate]:
    """The numbers of two sets that can be set side by side, by their path."""
    artefacts = measures.artefacts
    parts: dict[str, Struct | None] = {
        "diversity": measures.diversity,
        "duplicates": measures.duplicates,
        "difficulty": measures.difficulty,
        "cartography": measures.cartography,
        "labels.noise": measures.labels.noise,
        "labels.votes": measures.labels.votes,
        **{f"bias.{kind}": getattr(measures.bias, kind) for kind in (*KINDS, *TAGGED_KINDS)},
        "bias.gender": measures.bias.gender,
        "artefacts": artefacts,
        "artefacts.position": artefacts.position,
        **{f"artefacts.length.{name}": length for name, length in artefacts.length.items()},
        **{f"artefacts.one_field.{name}": one for name, one in artefacts.one_field.items()},
    }
    found = {
        f"{path}.{name}": value
        for path, part in parts.items()
        if part is not None
        for name in part.__struct_fields__
        if isinstance(value := getattr(part, name), Estimate)
    }
    if isinstance(artefacts.position, Position):
        found |= {
            f"artefacts.position.{name}": share for name, share in artefacts.position.shares.items()
        }
    return found


# ---- files


def _notes(rows: Rows, own: _Measured, overlapping: set[int], projected: Places) -> list[RowNote]:
    pvi: dict[int, float] = {}
    mapped: dict[int, tuple[float, float, float]] = {}
    if isinstance(own.fit, Crossfit):
        places = own.fit.places.tolist()
        pvi = dict(zip(places, pvi_of(own.fit).tolist(), strict=True))
        if (found := map_of(own.fit)) is not None:
            parts = (found.confidence, found.variability, found.correctness)
            for place, *of_row in zip(places, *(part.tolist() for part in parts), strict=True):
                mapped[place] = (of_row[0], of_row[1], of_row[2])
    likely = likely_labels(own.fit)
    notes: list[RowNote] = []
    for place, row in enumerate(rows.rows):
        confidence, variability, correctness = mapped.get(place, (None, None, None))
        x, y = projected.get(place, (None, None))
        cluster = own.clusters[place]
        notes.append(
            RowNote(
                key=row.key,
                content=row_digest(row.fields, row.label),
                pvi=pvi.get(place),
                likely=likely.get(place),
                cluster=None if cluster < 0 else rows.rows[cluster].key,
                overlaps=place in overlapping,
                confidence=confidence,
                variability=variability,
                correctness=correctness,
                x=x,
                y=y,
            )
        )
    return notes


def check_folder(out: Path) -> None:
    """Raises UserError where write_analysis() will not be able to write: said before long work."""
    there = next(path for path in (out, *out.absolute().parents) if os.access(path, os.F_OK))
    if not there.is_dir():
        raise UserError(f"cannot write {out}: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {out}: {there} may not be written to")


def write_analysis(analysis: Analysis, notes: Sequence[RowNote], out: Path) -> None:
    """analysis.json and rows.jsonl in the folder `out`, each whole or not at all.

    Floats have six decimals. Raises UserError where they cannot be written.
    """
    told = msgspec.json.format(msgspec.json.encode(rounded(msgspec.to_builtins(analysis))))
    lines = b"".join(msgspec.json.encode(rounded(msgspec.to_builtins(n))) + b"\n" for n in notes)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in ((ANALYSIS, told + b"\n"), (ROWS, lines)):
            part = out / f".{name}.part"
            part.write_bytes(content)
            os.replace(part, out / name)  # noqa: PTH105 - as bytes appear: whole
    except OSError as error:
        raise UserError(f"cannot write {out}: {(error.strerror or '').lower()}") from error


class _Versioned(Struct, frozen=True):
    version: int


def read_analysis(path: Path) -> Analysis:
    """What write_analysis() wrote. Raises UserError for a file that is none of this version."""
    try:
        content = path.read_bytes()
        version = msgspec.json.decode(content, type=_Versioned).version
        if version != VERSION:
            raise UserError(
                f"{path} is an analysis of version {version}, not {VERSION}: analyse the data again"
            )
        return msgspec.json.decode(content, type=Analysis)
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or '').lower()}") from error
    except msgspec.DecodeError as error:
        raise UserError(f"{path} is no analysis: {error}") from error


def analysis_schema() -> bytes:
    """The JSON Schema (2020-12) of analysis.json, as it stands in docs/analysis.schema.json."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return msgspec.json.format(msgspec.json.encode(schema | msgspec.json.schema(Analysis))) + b"\n"


def rounded(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, (list, tuple)) else value
