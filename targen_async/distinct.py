"""The distinct gate: no row twice, none nearly twice. Its state is on disk, not in the heap.

Exact duplicates are found by a digest of the normalised text. Near duplicates (Broder 1997) are
found through MinHash bands and then decided by the exact Jaccard similarity of the character
5-grams, so the threshold means what it says.
"""

import re
import sqlite3
import unicodedata
from collections.abc import Sequence
from hashlib import blake2b
from math import inf
from pathlib import Path
from typing import NamedTuple

from rensa import RMinHash

NGRAM = 5
_HASHES = 64
_BLANK = re.compile(r"\W+")
_BLANKED = {code: " " for code in range(128) if _BLANK.match(chr(code))}

_SCHEMA = """
CREATE TABLE IF NOT EXISTS mark (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS seeds (digest BLOB PRIMARY KEY, id INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, digest BLOB NOT NULL, text TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS rows_digest ON rows (digest);
CREATE TABLE IF NOT EXISTS bands (band INTEGER, id INTEGER, PRIMARY KEY (band, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS surplus (id INTEGER PRIMARY KEY, label TEXT NOT NULL, line BLOB NOT NULL,
                                    adopted_by INTEGER);
"""


class Duplicate(NamedTuple):
    """Which earlier row a text repeats, and how closely (1.0: exactly)."""

    id: int
    similarity: float


class Sketch(NamedTuple):
    """A row's texts as the gate compares them."""

    text: str
    digest: bytes
    grams: set[str]
    """Empty, as `bands` is, where only equal rows are looked for."""
    bands: list[int]


def normalised(text: str) -> str:
    """What counts as the same text: case, spacing, punctuation and Unicode forms do not."""
    if text.isascii():
        # The same in a tenth of the time.
        return " ".join(text.lower().translate(_BLANKED).split())
    return _BLANK.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def shingles(text: str) -> set[str]:
    """Character 5-grams of a normalised text; the text itself where it is shorter."""
    return {text[i : i + NGRAM] for i in range(max(1, len(text) - NGRAM + 1))}


def jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b)


def banding(threshold: float) -> tuple[int, int]:
    """(bands, hashes a band): the widest bands that still catch 98 % at the threshold."""
    best = (_HASHES, 1)
    for width in range(2, 17):
        bands = _HASHES // width
        if 1 - (1 - threshold**width) ** bands >= 0.98:
            best = (bands, width)
    return best


class DistinctGate:
    """Seeds and rows seen so far, by ascending id. Owned by the ordered points of one run."""

    def __init__(self, path: Path, threshold: float) -> None:
        self.threshold = threshold
        self._bands, self._width = banding(threshold)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_SCHEMA)
        self._db.execute("BEGIN")

    def close(self) -> None:
        self._db.close()

    # ---- staying in step with the journal's checkpoints

    def save(self, watermark: int, seed_id: int) -> None:
        """Commit everything so far as the state at `watermark`; called before its checkpoint."""
        for name, value in (("rows", watermark), ("seeds", seed_id)):
            self._db.execute("INSERT OR REPLACE INTO mark VALUES (?, ?)", (name, value))
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")

    def rewind(self, watermark: int, seed_id: int, targets: int) -> bool:
        """Forget what came at or after a checkpoint. False: the state is older, so it is no use.

        `targets`: how many aims of the run that checkpoint had applied.
        """
        marks = dict(self._db.execute("SELECT name, value FROM mark").fetchall())
        if marks.get("rows", 0) < watermark or marks.get("seeds", 0) < seed_id:
            return False
        self._db.execute("DELETE FROM rows WHERE id >= ?", (watermark,))
        self._db.execute("DELETE FROM bands WHERE id >= ?", (watermark,))
        self._db.execute("DELETE FROM surplus WHERE id >= ?", (watermark,))
        self._db.execute("UPDATE surplus SET adopted_by = NULL WHERE adopted_by >= ?", (targets,))
        self._db.execute("DELETE FROM seeds WHERE id >= ?", (seed_id,))
        return True

    # ---- seeds

    def new_seed(self, id_: int, text: str) -> bool:
        """Remember a seed; False when an earlier one reads the same."""
        digest = _digest(normalised(text))
        before = self._db.execute("SELECT 1 FROM seeds WHERE digest = ?", (digest,)).fetchone()
        if before is None:
            self._db.execute("INSERT INTO seeds VALUES (?, ?)", (digest, id_))
        return before is None

    # ---- rows

    def sketch(self, texts: Sequence[str]) -> Sketch:
        """What the gate compares rows by."""
        text = "\n".join(normalised(part) for part in texts)
        if self.threshold >= 1:
            return Sketch(text, _digest(text), set(), [])
        grams = shingles(text)
        return Sketch(text, _digest(text), grams, self._band_hashes(grams))

    def duplicate_of(self, id_: int, group: int, sketch: Sketch) -> Duplicate | None:
        """Which earlier row a row repeats, or None.

        Rows of one group (`id // group`) are compared exactly only, never for nearness.
        """
        same = self._db.execute(
            "SELECT min(id) FROM rows WHERE digest = ?", (sketch.digest,)
        ).fetchone()
        if same[0] is not None:
            return Duplicate(same[0], 1.0)
        return self._nearest(id_ // group, group, sketch)

    def add_row(self, id_: int, sketch: Sketch) -> None:
        """Remember a row."""
        # Nothing but nearness is decided by the text.
        text = sketch.text if sketch.bands else ""
        self._db.execute("INSERT INTO rows VALUES (?, ?, ?)", (id_, sketch.digest, text))
        if sketch.bands:
            self._db.executemany(
                "INSERT OR IGNORE INTO bands VALUES (?, ?)", [(band, id_) for band in sketch.bands]
            )

    def _band_hashes(self, grams: set[str]) -> list[int]:
        sketch = RMinHash(num_perm=_HASHES, seed=1)
        sketch.update(list(grams))
        values = sketch.digest()
        return [
            int.from_bytes(
                blake2b(
                    repr((band, values[band * self._width : (band + 1) * self._width])).encode(),
                    digest_size=8,
                ).digest(),
                "big",
                signed=True,
            )
            for band in range(self._bands)
        ]

    def _nearest(self, own_group: int, group: int, sketch: Sketch) -> Duplicate | None:
        if not sketch.bands:
            return None
        marks = ",".join("?" * len(sketch.bands))
        found = self._db.execute(
            f"SELECT DISTINCT rows.id, rows.text FROM bands JOIN rows ON rows.id = bands.id "
            f"WHERE band IN ({marks}) ORDER BY rows.id",
            sketch.bands,
        )
        best = Duplicate(-1, -inf)
        for id_, other in found:
            if id_ // group != own_group:
                similarity = jaccard(sketch.grams, shingles(other))
                if similarity > best.similarity:
                    best = Duplicate(id_, similarity)
        return best if best.similarity >= self.threshold else None

    # ---- rows over a quota, kept for the day n is raised

    def keep_surplus(self, id_: int, label: str, line: bytes) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO surplus VALUES (?, ?, ?, NULL)", (id_, label, line)
        )

    def surplus(self) -> list[tuple[int, str, bytes]]:
        """(id, label, line) of every row still over its quota, in key order."""
        return self._db.execute(
            "SELECT id, label, line FROM surplus WHERE adopted_by IS NULL ORDER BY id"
        ).fetchall()

    def surplus_count(self) -> int:
        count: int = self._db.execute(
            "SELECT count(*) FROM surplus WHERE adopted_by IS NULL"
        ).fetchone()[0]
        return count

    def adopt_surplus(self, id_: int, target: int) -> None:
        """The row is delivered from the `target`-th aim of the run on."""
        self._db.execute("UPDATE surplus SET adopted_by = ? WHERE id = ?", (target, id_))


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()
