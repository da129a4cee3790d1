"""Seeds from texts of the user's own.

The usable texts of a corpus are copied into the run's folder once (`seeds.jsonl`), so that a run
can be gone on with wherever the corpus went. They are used in an order that the run's seed draws.
"""

import os
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from hashlib import blake2b, sha256
from pathlib import Path
from random import Random

import msgspec
import orjson
from msgspec import Struct
from msgspec.structs import replace

from targen_async.config import Data, RunConfig, Source
from targen_async.control import Demand
from targen_async.distinct import normalised
from targen_async.errors import RunStopped, UserError
from targen_async.pipeline import Incoming, Send
from targen_async.points import SeedStart, text_problem
from targen_async.records import Context, Seed, SeedCall, Usage
from targen_async.rows import Material
from targen_async.rundir import SEEDS, write_headed
from targen_async.sources import Exclusion, read_texts
from targen_async.tasks import Task, fixed_placeholders

_NOWHERE = Context(index=0, text="", axes={})


_CACHED_TEXTS = 1024
_HEAD_ROOM = 512
"""Bytes for the counts in the first line."""


class Summary(Struct, frozen=True, kw_only=True):
    """What became of a corpus; the first line of `seeds.jsonl`."""

    file: str
    field: str | None
    sha256: str
    exclude: list[str]
    """SHA-256 of each excluded file."""
    words: tuple[int, int]
    texts: int
    usable: int
    lines_sha256: str
    """Of the lines below the first."""
    refused: dict[str, int]
    """Reason to count: `invalid` (length or characters), `duplicate`, `excluded`."""


class Corpus:
    """The usable texts of a corpus, as they stand in the run's folder."""

    def __init__(self, path: Path, random_seed: int, rounds: int = 1) -> None:
        self.rounds = rounds
        """How often each text may be used."""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._offsets = array("Q")
        with path.open("rb") as file:
            head = file.readline()
            offset = len(head)
            for line in file:
                self._offsets.append(offset)
                offset += len(line)
        self._end = offset
        self.summary = msgspec.json.decode(head, type=Summary)
        self._order = array("Q", range(len(self._offsets)))
        Random(f"{random_seed}:corpus").shuffle(self._order)
        # Asked for when a seed is passed on, and again when it is written about.
        self.read = lru_cache(_CACHED_TEXTS)(self._read)

    def __len__(self) -> int:
        return len(self._offsets)

    def text(self, index: int) -> str:
        """The index-th text in the run's order."""
        return self.read(index)[1]

    def _read(self, index: int) -> tuple[int, str]:
        """(line in the corpus, text) of the index-th text in the run's order."""
        place = self._order[index % len(self._order)]
        start = self._offsets[place]
        end = self._offsets[place + 1] if place + 1 < len(self._offsets) else self._end
        line, text = orjson.loads(os.pread(self._fd, end - start, start))
        return line, text

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def open_material(
    config: RunConfig, task: Task, folder: Path, *, rows_per_seed: int
) -> Iterator[tuple[Corpus | None, Material]]:
    """The run's corpus, if its seeds come from one, and what the rows are made with.

    Raises UserError for a file that cannot be used, or that has too few texts for n rows.
    """
    exclusion = Exclusion(config.data.exclude)
    if config.data.corpus is None:
        yield None, Material(corpus_text=_no_text, objection=exclusion.objection)
        return
    _refuse_contexts(task)
    corpus = _open_corpus(folder, task, config.data, config.data.corpus, exclusion)
    with closing(corpus):
        most = config.delivery.max_rows_per_seed
        corpus.rounds = _rounds(corpus, config.delivery.n, rows_per_seed, most)
        yield corpus, Material(corpus_text=corpus.text, objection=exclusion.objection)


def _no_text(index: int) -> str:
    raise LookupError(index)


def _open_corpus(
    folder: Path, task: Task, data: Data, source: Source, exclusion: Exclusion
) -> Corpus:
    """The run's copy of the corpus, made where there is none."""
    path = folder / SEEDS
    wanted = Summary(
        file=source.file,
        field=source.field,
        sha256=source.sha256,
        exclude=[source.sha256 for source in data.exclude],
        words=task.corpus_words,
        texts=0,
        usable=0,
        lines_sha256="",
        refused={},
    )
    if not _stands(path, wanted):
        _copy(path, source, wanted, exclusion)
    return Corpus(path, data.random_seed)


def _stands(path: Path, wanted: Summary) -> bool:
    try:
        with path.open("rb") as file:
            found = msgspec.json.decode(file.readline(), type=Summary)
            digest = sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except (OSError, msgspec.DecodeError):
        return False
    counted = replace(wanted, texts=found.texts, usable=found.usable, refused=found.refused)
    return replace(counted, file=found.file, lines_sha256=digest.hexdigest()) == found


def _copy(path: Path, source: Source, wanted: Summary, exclusion: Exclusion) -> None:
    seen: set[bytes] = set()
    counts: Counter[str] = Counter()
    written = sha256()

    def lines() -> Iterator[bytes]:
        for number, text in read_texts(source):
            digest = blake2b(normalised(text).encode(), digest_size=16).digest()
            problem = _problem(text, wanted.words, exclusion) or (
                "duplicate" if digest in seen else None
            )
            counts[problem or "usable"] += 1
            if problem is None:
                seen.add(digest)
                line = orjson.dumps([number, text], option=orjson.OPT_APPEND_NEWLINE)
                written.update(line)
                yield line

    def head() -> bytes:
        usable = counts.pop("usable", 0)
        if not usable:
            raise UserError(
                f"{source.file} holds no text that can be used (refused: {dict(counts) or 'none'}; "
                f"the task takes {wanted.words[0]} to {wanted.words[1]} words)"
            )
        texts = usable + counts.total()
        found = replace(wanted, texts=texts, usable=usable, refused=dict(sorted(counts.items())))
        return msgspec.json.encode(replace(found, lines_sha256=written.hexdigest()))

    try:
        write_headed(path, lines(), head, len(msgspec.json.encode(wanted)) + _HEAD_ROOM)
    except FileNotFoundError as error:
        raise UserError(f"data.corpus: cannot read {source.file}: it is not there") from error


def _problem(text: str, words: tuple[int, int], exclusion: Exclusion) -> str | None:
    if text_problem(text, words):
        return "invalid"
    return "excluded" if exclusion.objection(text) else None


def _refuse_contexts(task: Task) -> None:
    """A text of a corpus has no context and no axes: templates that want them cannot be filled."""
    own = {*task.instances.axes, *fixed_placeholders("instances", task)} - {"context"}
    lost = {"context", *task.contexts.axes, *task.seeds.axes} - own
    for key, template in task.templates.items():
        used = [name for name in template.placeholders if name in lost]
        if key.startswith("instances") and used:
            raise UserError(
                f"{template.path} uses {{{{ {used[0]} }}}}, which a seed from a corpus does not "
                "have: take it out of the template, or generate the seeds"
            )
    for name, spec in task.fields.items():
        if spec.source == "axis" and name not in task.instances.axes:
            raise UserError(
                f"the field {name!r} of {task.name} is an axis of [seeds], which a seed from a "
                "corpus does not have"
            )


def _rounds(corpus: Corpus, n: int, rows_per_seed: int, most: int | None) -> int:
    """How often each text may be used. Raises UserError where that cannot give n rows."""
    rounds = (most or rows_per_seed) // rows_per_seed
    if not rounds:
        raise UserError(
            f"--max-rows-per-seed {most} is less than the {rows_per_seed} rows that each seed "
            f"gets: allow {rows_per_seed} or more, or set data.rows_per_seed"
        )
    able = len(corpus) * rounds * rows_per_seed
    if able < n:
        need = -(-n // len(corpus))
        raise UserError(
            f"{corpus.summary.file} has {len(corpus)} usable texts of {corpus.summary.texts}, "
            f"enough for {able} rows at {rounds * rows_per_seed} a text, and {n} are wanted: allow "
            f"--max-rows-per-seed {-(-need // rows_per_seed) * rows_per_seed} or more, add texts, "
            "or lower -n"
        )
    return rounds


class CorpusSeeds:
    """Passes the texts of a corpus on as seeds, no further ahead than rows are planned."""

    def __init__(self, corpus: Corpus, demand: Demand, start: SeedStart) -> None:
        self._corpus = corpus
        self._most = corpus.rounds * len(corpus)
        self._demand = demand
        self._start = start

    async def work(self, _incoming: Incoming, send: Send) -> None:
        """A text that is used again comes with a new index, after all others."""
        for index in range(self._start.index, self._most):
            if not await self._demand.next_call():
                return
            line, _ = self._corpus.read(index)
            self._demand.settle(1)
            await send(
                Seed(
                    index=index,
                    call=SeedCall(index=index, context=_NOWHERE, axes={}),
                    first_index=index,
                    offset=-1,
                    position=index,
                    notes=(),
                    wasted=Usage(),
                    line=line,
                )
            )
        raise RunStopped(
            f"all {len(self._corpus)} texts of {self._corpus.summary.file} are used up: allow more "
            "rows of each with --max-rows-per-seed, add texts in a new run, or be content"
        )
