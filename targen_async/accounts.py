"""What a run's files add up to, held against its manifest and against the journal's ledger."""

from collections import Counter
from collections.abc import Iterator

import msgspec
from msgspec import UNSET

from targen_async.audit import Audit, number_of
from targen_async.config import RunConfig, differences
from targen_async.ledger import at_most_usd
from targen_async.manifest import Tokens, spent_of
from targen_async.merged import FolderManifest, split_key
from targen_async.records import Instance, Rejection
from targen_async.rundir import FAILURES, MANIFEST, REJECTED
from targen_async.settle import OPEN_LABEL

_PLACELESS = ("data.task:", "data.corpus.file:", "data.exclude:")
"""What may differ between two starts of one run: where files stand."""


class Counted:
    """Counts rows and notes as they are read."""

    def __init__(self) -> None:
        self.rows = 0
        self.raises: float = 0
        """How often rows may stand behind later ones: rows over a quota that were taken when n was
        raised."""
        self.classes: Counter[str] = Counter()
        self.unclassed = 0
        """Rows whose class cannot be told."""
        self.moves: Counter[tuple[str, str, str]] = Counter()
        """Label before correction, label after, outcome."""
        self.rejected: Counter[str] = Counter()
        self.surplus = 0
        self.failed: Counter[str] = Counter()
        self.simulated = 0
        self.kept: Counter[int] = Counter()
        self.dropped: Counter[int] = Counter()
        """Of a merged folder: rows by source."""
        self._seen: set[int] = set()
        self._last = -1.0

    def deliver(self, instance: Instance, quota_class: str | None) -> None:
        """A row of a shard."""
        self.rows += 1
        if quota_class is None:
            self.unclassed += 1
        else:
            self.classes[quota_class] += 1
        self.move(instance)
        self.simulated += instance.provenance.simulated
        if (found := split_key(instance.key)) is not None:
            self.kept[found[0]] += 1

    def move(self, instance: Instance) -> None:
        """A row that came as far as the judge."""
        outcome = instance.provenance.outcome
        self.moves[instance.label_before_correction, instance.label, outcome] += 1

    def reject(self, note: Rejection) -> None:
        if note.reason == "surplus":
            self.surplus += 1
        else:
            self.rejected[f"{note.stage}.{note.reason}"] += 1
        if note.row is not UNSET and (found := split_key(note.key)) is not None:
            self.dropped[found[0]] += 1

    def out_of_order(self, key: str) -> str | None:
        """Why a shard's row should not stand where it does, or None."""
        source = split_key(key)
        number = number_of(key)
        name = hash(key) if source else number
        if name is None:
            return None  # Told already.
        if name in self._seen:
            return f"{key} stands here a second time"
        self._seen.add(name)
        place = float(source[0] if source else name)
        last, self._last = self._last, place
        if place >= last:
            return None
        self.raises -= 1
        return f"{key} stands behind a later row" if self.raises < 0 else None


def own_faults(manifest: FolderManifest) -> Iterator[str]:
    """Where a manifest contradicts itself."""
    if manifest.delivered != sum(manifest.balance.values()):
        yield f"{MANIFEST}: delivered is {manifest.delivered}, and balance adds up to another sum"
    sealed = sum(seal.rows for seal in manifest.shards)
    # While a run goes on, its shards are sealed as of the last checkpoint.
    if manifest.state != "running" and manifest.delivered != sealed:
        yield f"{MANIFEST}: delivered is {manifest.delivered}, and the shards have {sealed} rows"
    if manifest.state == "complete" and manifest.delivered < manifest.n:
        yield f"{MANIFEST}: state is complete, with {manifest.delivered} of {manifest.n} rows"
    if manifest.sources:
        yield from _merged_faults(manifest)
        return
    try:
        digest = msgspec.convert(manifest.config, RunConfig).digest()
    except msgspec.ValidationError as error:
        yield f"{MANIFEST}: config is no configuration: {error}"
        return
    if digest != manifest.data_digest:
        yield f"{MANIFEST}: data_digest is not that of config"


def _merged_faults(manifest: FolderManifest) -> Iterator[str]:
    kept = sum(origin.kept for origin in manifest.sources)
    if kept != manifest.delivered:
        yield f"{MANIFEST}: delivered is {manifest.delivered}, and the sources kept {kept} rows"
    if manifest.simulated != any(origin.simulated for origin in manifest.sources):
        yield f"{MANIFEST}: simulated is not what the sources say"
    for name in ("prompt_tokens", "completion_tokens"):
        spent = sum(getattr(origin.spent, name) for origin in manifest.sources)
        if (told := getattr(manifest.spent, name)) != spent:
            yield f"{MANIFEST}: spent.{name} is {told}, and that of the sources {spent}"


def file_faults(manifest: FolderManifest, counted: Counted) -> Iterator[str]:
    """Where the manifest's counts are not those of the files."""
    if not counted.unclassed:
        for label in dict.fromkeys((*manifest.balance, *counted.classes)):
            told, found = manifest.balance.get(label, 0), counted.classes[label]
            if told != found:
                yield f"{MANIFEST}: balance of {label} is {told}, and the shards have {found}"
    yield from _pairs("rejected", manifest.rejected, counted.rejected, REJECTED)
    yield from _pairs("failed", manifest.failed, counted.failed, FAILURES)
    if manifest.surplus != counted.surplus:
        yield f"{MANIFEST}: surplus is {manifest.surplus}, and {REJECTED} has {counted.surplus}"
    # Of a merged folder all simulated rows may have been refused.
    lacking = manifest.simulated and not counted.simulated and not manifest.sources
    if counted.rows and (lacking or (counted.simulated and not manifest.simulated)):
        said = "true" if manifest.simulated else "false"
        yield f"{MANIFEST}: simulated is {said}, and {counted.simulated} rows are simulated"
    if not manifest.sources:
        moves = _moves(manifest, counted)
        for before in dict.fromkeys((*manifest.transitions, *moves)):
            told_row, found_row = manifest.transitions.get(before, {}), moves.get(before, Counter())
            yield from _pairs(f"transitions of {before}", told_row, found_row, "the files")
    for number, origin in enumerate(manifest.sources):
        here = counted.kept[number], counted.kept[number] + counted.dropped[number]
        if here != (origin.kept, origin.rows):
            yield (
                f"{MANIFEST}: source {number} ({origin.name}) gave {origin.kept} of {origin.rows} "
                f"rows, and the files have {here[0]} of {here[1]}"
            )


def _pairs(what: str, told: dict[str, int], found: Counter[str], where: str) -> Iterator[str]:
    for name in dict.fromkeys((*told, *found)):
        said, counted = told.get(name, 0), found[name]
        if said != counted:
            yield f"{MANIFEST}: {what}: {name} is {said}, and by {where} {counted}"


def _moves(manifest: FolderManifest, counted: Counted) -> dict[str, Counter[str]]:
    """The transition table of the rows that were read, in the manifest's form."""
    is_open = OPEN_LABEL in manifest.transitions and OPEN_LABEL not in manifest.balance
    table: dict[str, Counter[str]] = {}
    for (before, after, outcome), count in counted.moves.items():
        if is_open:
            named = {"keep": "kept", "relabel": "changed"}.get(outcome, outcome)
            table.setdefault(OPEN_LABEL, Counter())[named] += count
        else:
            named = after if outcome in ("keep", "relabel") else outcome
            table.setdefault(before, Counter())[named] += count
    return table


def ledger_faults(manifest: FolderManifest, audit: Audit) -> Iterator[str]:
    """Where the manifest is not what the journal says of the rows that stand."""
    standing = audit.standing
    totals = standing.totals
    spent, in_doubt = spent_of(standing.by_role, manifest.prices)
    pairs: list[tuple[str, object, object]] = [
        ("task_digest", manifest.task_digest, standing.task_digest),
        ("generation", manifest.generation, standing.generations),
        ("calls.served", manifest.calls.served, totals.served),
        ("calls.refused", manifest.calls.refused, totals.refused),
        ("calls.in_doubt", manifest.calls.in_doubt, totals.in_doubt),
        ("calls.hedged", manifest.calls.hedged, totals.hedged),
        (
            "calls.served_without_usage",
            manifest.calls.served_without_usage,
            totals.without_usage,
        ),
        *_token_pairs("spent", manifest.spent, spent),
        *_token_pairs("in_doubt", manifest.in_doubt, in_doubt),
        ("usd_at_most", manifest.usd_at_most, at_most_usd(standing.by_role, manifest.prices)),
    ]
    if (state := standing.checkpoint) is not None:
        pairs += [
            ("n", manifest.n, state.plan.n),
            ("delivered", manifest.delivered, sum(state.plan.accepted.values())),
            ("transitions", manifest.transitions, state.counts.transitions),
            ("models", manifest.models or state.counts.models, state.counts.models),
        ]
    for name, told, held in pairs:
        if told != held:
            yield f"{MANIFEST}: {name} is {_short(told)}, and by the journal {_short(held)}"
    yield from _seal_faults(manifest, audit)
    yield from _setting_faults(manifest, audit)


def _token_pairs(name: str, told: Tokens, should: Tokens) -> list[tuple[str, object, object]]:
    return [
        (f"{name}.{field}", getattr(told, field), getattr(should, field))
        for field in Tokens.__struct_fields__
    ]


def _seal_faults(manifest: FolderManifest, audit: Audit) -> Iterator[str]:
    if (state := audit.standing.checkpoint) is None:
        return
    told = {seal.name: seal for seal in manifest.shards}
    held = {seal.name: seal for seal in state.files.shards}
    for name in sorted({*told, *held}):
        if told.get(name) != held.get(name):
            yield f"{name}: {MANIFEST} seals it with other bytes than the journal's checkpoint does"


def _setting_faults(manifest: FolderManifest, audit: Audit) -> Iterator[str]:
    try:
        now = msgspec.convert(manifest.config, RunConfig).data
    except msgspec.ValidationError:
        return
    if audit.opened is None:
        return
    for line in differences(audit.opened.data, now):
        if not line.startswith(_PLACELESS):
            yield f"{MANIFEST}: config is not the journal's: {line}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:79] + "…"
