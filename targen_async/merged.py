"""What the manifest of a merged folder says on top of a run's: where its rows come from."""

import re
from pathlib import Path

import msgspec
from msgspec import Struct, field

from targen_async.errors import UserError
from targen_async.manifest import FORMAT, Manifest, Tokens
from targen_async.rundir import MANIFEST, ShardSeal

_KEY = re.compile(r"r(\d+)/(.+)")


class Origin(Struct, frozen=True, kw_only=True):
    """One source of a merged folder. Its rows' keys begin with `r` and its number, from 0."""

    name: str
    """Of its folder, without the path."""
    rows: int
    kept: int
    """Rows that repeat none of an earlier source."""
    simulated: bool
    model: str
    task_digest: str
    data_digest: str
    spent: Tokens
    shards: list[ShardSeal]
    sources: "list[Origin]" = field(default_factory=list)
    """Where it was merged itself."""


class FolderManifest(Manifest, frozen=True, kw_only=True):
    """manifest.json of a run, or of a merged folder, which has `sources` and no journal."""

    sources: list[Origin] = field(default_factory=list)

    @property
    def mixed(self) -> bool:
        """Are some of its sources simulated, and others not?"""
        return len({origin.simulated for origin in self.sources}) > 1


def key_of(source: int, key: str) -> str:
    """What a row of the source-th folder is called in a merged one."""
    return f"r{source}/{key}"


def split_key(key: str) -> tuple[int, str] | None:
    """(number of the source, key there) of a merged row; None: its key has another form."""
    found = _KEY.fullmatch(key)
    return (int(found[1]), found[2]) if found else None


def decode_manifest(folder: Path) -> FolderManifest:
    """manifest.json of a folder. Raises UserError where it cannot be read, or is of another form.

    OSError where there is none.
    """
    raw = (folder / MANIFEST).read_bytes()
    try:
        format_ = msgspec.json.decode(raw, type=dict[str, object]).get("format")
        if format_ != FORMAT:
            raise UserError(
                f"{MANIFEST}: format {format_!r} is not known here (this version reads {FORMAT})"
            )
        return msgspec.json.decode(raw, type=FolderManifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{MANIFEST}: {error}") from error
