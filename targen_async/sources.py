"""Files of texts that a user names: read, told apart by digest, and kept out of a data set."""

from collections.abc import Iterator, Mapping
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import orjson
from msgspec.structs import replace

from targen_async.config import RunConfig, Source
from targen_async.distinct import normalised
from targen_async.errors import UserError

GRAM = 13
"""Words in a row that two texts must share to count as overlapping (Brown et al. 2020)."""
SHORTEST = 5
"""An excluded text of fewer words, such as one word or "Yes.", is nobody's in particular."""


def with_digests(config: RunConfig) -> RunConfig:
    """The configuration with the digest of each file it names.

    Raises UserError for a file that cannot be read, or that is not what the configuration says.
    """
    data = config.data
    # A run has its own copy of the corpus, so that file may be gone.
    corpus = data.corpus and _with_digest(data.corpus, "data.corpus", copied=True)
    exclude = tuple(_with_digest(source, "data.exclude", copied=False) for source in data.exclude)
    return replace(config, data=replace(data, corpus=corpus, exclude=exclude))


def _with_digest(source: Source, key: str, *, copied: bool) -> Source:
    path = Path(source.file)
    digest = sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        if copied and source.sha256 and isinstance(error, FileNotFoundError):
            return source
        raise UserError(f"{key}: cannot read {path}: {(error.strerror or '').lower()}") from error
    if source.sha256 and digest.hexdigest() != source.sha256:
        raise UserError(
            f"{key}: {path} is not the file that the run was begun with (its SHA-256 is another); "
            "put that file back, or choose another --out"
        )
    return replace(source, sha256=digest.hexdigest())


class Exclusion:
    """Texts that must stay out: whole ones, and any run of 13 words of theirs."""

    def __init__(self, sources: tuple[Source, ...]) -> None:
        self._texts: set[int] = set()
        self._grams: set[int] = set()
        for source in sources:
            texts = 0
            for _, value in read_texts(source, all_fields=source.field is None):
                texts += 1
                words = normalised(value).split()
                if len(words) >= SHORTEST:
                    self._texts.add(_hash(words))
                self._grams.update(_hash(words[at : at + GRAM]) for at in _starts(words))
            if not texts:
                raise UserError(f"{source.file} holds no text that could be kept out")

    def objection(self, text: str) -> str | None:
        """Why a text must stay out, or None."""
        if not self._texts:
            return None
        words = normalised(text).split()
        if _hash(words) in self._texts:
            return "is an excluded text"
        shared = next(
            (a for a in _starts(words) if _hash(words[a : a + GRAM]) in self._grams), None
        )
        return None if shared is None else f"shares {GRAM} words in a row with an excluded text"


def _starts(words: list[str]) -> range:
    return range(len(words) - GRAM + 1)


def _hash(words: list[str]) -> int:
    return int.from_bytes(blake2b(" ".join(words).encode(), digest_size=8).digest(), "big")


# ---- reading a file of texts


def read_texts(source: Source, *, all_fields: bool = False) -> Iterator[tuple[int, str]]:
    """(line or row from 1, text) of a text, JSONL or Parquet file.

    `all_fields`: every text anywhere in an object or a row. Raises UserError that names the line.
    """
    path = Path(source.file)
    if path.suffix == ".parquet":
        yield from _parquet(path, source.field, all_fields)
        return
    lines = path.suffix in (".jsonl", ".ndjson")
    if not lines and source.field is not None:
        raise UserError(
            f"{path}: a field is named ({source.field}), but this is no JSONL or Parquet"
        )
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                value = orjson.loads(raw) if lines and raw.strip() else raw.decode("utf-8-sig")
            except (orjson.JSONDecodeError, UnicodeDecodeError) as error:
                raise UserError(f"{path}:{number}: {error}") from error
            for text in _texts_in(value, source.field, all_fields, f"{path}:{number}"):
                if text.strip():
                    yield number, text.strip()


def _texts_in(value: Any, name: str | None, all_fields: bool, place: str) -> Iterator[str]:  # noqa: ANN401
    try:
        yield from _texts_of(value, name, all_fields, place)
    except RecursionError as error:
        raise UserError(f"{place}: nested too deeply to be read") from error


def _texts_of(value: Any, name: str | None, all_fields: bool, place: str) -> Iterator[str]:  # noqa: ANN401
    if isinstance(value, str):
        yield value
    elif all_fields:
        parts = value.values() if isinstance(value, Mapping) else value
        for part in parts if isinstance(value, (Mapping, list)) else ():
            yield from _texts_of(part, name, True, place)
    elif isinstance(value, Mapping) and isinstance(text := value.get(name), str):
        yield text
    else:
        fields = value.items() if isinstance(value, Mapping) else ()
        have = ", ".join(key for key, part in fields if isinstance(part, str))
        wanted = f"there is no text under {name!r}" if name else "name the field with --seeds-field"
        raise UserError(f"{place}: {wanted} (texts here: {have or 'none'})")


def _parquet(path: Path, column: str | None, all_fields: bool) -> Iterator[tuple[int, str]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError(
            f"{path}: reading Parquet needs `pip install 'targen-async[data]'`"
        ) from error
    try:
        file = parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}") from error
    names = file.schema_arrow.names
    if not all_fields and column not in names:
        wanted = (
            f"there is no column {column!r}" if column else "name the column with --seeds-field"
        )
        raise UserError(f"{path}: {wanted} (columns: {', '.join(names)})")
    batches = file.iter_batches(batch_size=1024, columns=names if all_fields else [column])
    rows = (row for batch in batches for row in batch.to_pylist())
    number = 1
    while True:
        try:
            row = next(rows, None)
        except (OSError, ValueError) as error:
            said = " ".join(str(error).split())
            raise UserError(
                f"{path}, near row {number}: cannot be read as Parquet: {said}"
            ) from error
        if row is None:
            return
        for text in _texts_in(row, column, all_fields, f"{path}, row {number}"):
            if text.strip():
                yield number, text.strip()
        number += 1
