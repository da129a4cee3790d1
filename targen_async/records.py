"""Everything that flows through a run, as frozen structs.

Outside data is decoded into these (`msgspec.convert`, `msgspec.json.decode`): their constructors
do not validate.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

StageName = Literal["probe", "contexts", "seeds", "instances", "correction"]
Reason = Literal["invalid", "duplicate", "near_duplicate", "dropped", "review", "twin", "surplus"]
Outcome = Literal["keep", "relabel", "drop", "review"]


class Message(Struct, frozen=True, kw_only=True, gc=False):
    """One chat message, as in OpenAI's chat completions."""

    role: Literal["system", "user", "assistant"]
    content: str


class ChatRequest(Struct, frozen=True, kw_only=True, gc=False):
    """One call to a chat model. `key` is ours and is never sent."""

    key: str
    model: str
    messages: tuple[Message, ...]
    temperature: float
    max_tokens: int
    seed: int
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    schema_name: str | None = None
    """`task-stage-variant`; OpenAI allows letters, digits, `_` and `-`, at most 64."""
    json_schema: Mapping[str, Any] | None = None
    """None asks for plain text."""
    memo: bytes = bytes(16)
    """Digest of the plan key and of what is asked: what the journal knows the call by. Of a
    question that is put in words, for want of a schema, it is that of the question with one."""


class Usage(Struct, frozen=True, kw_only=True, gc=False):
    """Tokens of one call, as the endpoint counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0
    """The part of `prompt_tokens` that the provider's prefix cache held."""


class RateLimits(Struct, frozen=True, kw_only=True, gc=False):
    """What an endpoint says of its limits beside an answer; None where it does not say.

    `*_reset_s`: seconds until the limit is whole again.
    """

    requests_limit: float | None = None
    requests_remaining: float | None = None
    requests_reset_s: float | None = None
    tokens_limit: float | None = None
    tokens_remaining: float | None = None
    tokens_reset_s: float | None = None


class ChatResult(Struct, frozen=True, kw_only=True, gc=False):
    """One answer. `text` may be anything a model can write: it is hostile until parsed."""

    key: str
    text: str
    finish_reason: str
    model: str
    """As served, which may differ from the model asked for."""
    usage: Usage | None
    """None where the endpoint reported none."""
    refusal: str | None = None
    offset: int = -1
    """Where the journal keeps the raw answer; -1 where nothing records."""
    latency_s: float = 0.0
    attempts: int = 1
    rate_limits: RateLimits | None = None
    """None where the endpoint says nothing of them."""
    thought_tokens: int = 0
    """What it thought before it spoke, as the endpoint counts it; where thoughts are only shown, a
    fourth of their letters."""


class Failure(Struct, frozen=True, kw_only=True, gc=False):
    """A step that ended without an answer we can use. Nothing disappears: it is written down."""

    key: str
    stage: StageName
    kind: str
    """What the model said: `malformed`, `misaligned` (ids of a batch), `truncated`, `refused`,
    `empty`, `oversized`. What the endpoint said: `rejected`, `exhausted`. `needs_call`: it was to
    be had without a call, and the journal does not hold it."""
    message: str
    attempts: int
    """How often it was asked."""
    text: str | None = None
    """What the model said, if it said anything."""


class Vote(Struct, frozen=True, kw_only=True, gc=False):
    """One judge's answer on one row. `label` is a label of the task or `none`."""

    label: str
    explanation: str
    model: str


class Provenance(Struct, frozen=True, kw_only=True, gc=False):
    """Where a row came from: enough to audit it, nothing that differs from run to run."""

    simulated: bool
    outcome: Outcome
    context: str
    context_axes: Mapping[str, str]
    seed: str
    seed_source: Literal["generated", "corpus"]
    seed_line: int | None
    """Of a corpus: the line (JSONL, text) or row (Parquet) it stood in, from 1."""
    seed_axes: Mapping[str, str]
    axes: Mapping[str, str]
    explanation: str
    votes: tuple[Vote, ...]
    model: str
    """The generator as served."""
    task_version: int
    templates: Mapping[str, str]
    """Stage to the first 16 hex digits of the SHA-256 of its template."""
    usage: Usage
    """Of the instance call, or its share where a call writes several rows; what else rows have in
    common is in the manifest."""


class Instance(Struct, frozen=True, kw_only=True, gc=False):
    """One finished row. On disk `fields` are laid flat beside the rest."""

    key: str
    task: str
    label: str
    label_before_correction: str
    fields: Mapping[str, str]
    provenance: Provenance


class Rejection(Struct, frozen=True, kw_only=True, gc=False):
    """A row, context or seed that was paid for and not delivered, with the reason."""

    key: str
    stage: StageName
    reason: Reason
    detail: str
    row: Mapping[str, Any] | UnsetType = UNSET
    """The whole row, where there is one."""
    text: str | UnsetType = field(default=UNSET)
    """The context's or seed's text."""


# ---- what flows between the stages. Texts stay in the journal: these hold offsets into it.

Note = Failure | Rejection


class ContextCall(Struct, frozen=True, kw_only=True, gc=False):
    """The index-th call for contexts, with the attributes it is conditioned on."""

    index: int
    axes: Mapping[str, str]


class ContextAnswer(Struct, frozen=True, kw_only=True, gc=False):
    call: ContextCall
    offset: int
    failure: Failure | None
    wasted: Usage


class Context(Struct, frozen=True, kw_only=True, gc=False):
    """An accepted context. `notes`: what was refused on the way to it."""

    index: int
    text: str
    axes: Mapping[str, str]
    notes: tuple[Note, ...] = ()
    wasted: Usage = Usage()


class SeedCall(Struct, frozen=True, kw_only=True, gc=False):
    """The index-th call for seeds; calls walk through the contexts in rounds."""

    index: int
    context: Context
    axes: Mapping[str, str]


class SeedAnswer(Struct, frozen=True, kw_only=True, gc=False):
    call: SeedCall
    offset: int
    failure: Failure | None
    wasted: Usage


class Seed(Struct, frozen=True, kw_only=True, gc=False):
    """An accepted instance seed: the `position`-th text of the answer at `offset`."""

    index: int
    call: SeedCall
    first_index: int
    """Index of the first accepted seed of the same call: where a resumed run begins to count."""
    offset: int
    position: int
    notes: tuple[Note, ...]
    wasted: Usage
    line: int = 0
    """Where it stands in the corpus, from 1; 0: it was generated."""


class SlotCall(Struct, frozen=True, kw_only=True, gc=False):
    """An instance to be written: for this seed, this label and these attributes.

    `label` is a quota class where the task's label is open; `member`: which of the rows that one
    call writes together.
    """

    slot: int
    key: str
    label: str
    member: int
    axes: Mapping[str, str]
    seed: Seed


class SlotAnswer(Struct, frozen=True, kw_only=True, gc=False):
    """What came of a slot: an answer at `offset`, or a failure, or `invalid` with the reason."""

    call: SlotCall
    offset: int
    failure: Failure | None
    invalid: str | None
    wasted: Usage


class Block(Struct, frozen=True, kw_only=True, gc=False):
    """Rows that are judged together."""

    key: str
    members: tuple[SlotAnswer, ...]


class Ballot(Struct, frozen=True, kw_only=True, gc=False):
    """One vote on one row: item `id` of the answer at `offset`, or the failure in its place."""

    offset: int
    id: str
    failure: Failure | None = None


class Judged(Struct, frozen=True, kw_only=True, gc=False):
    """A slot on its way to the commit point. No ballots: not judged."""

    answer: SlotAnswer
    ballots: tuple[Ballot, ...]
    wasted: Usage


def row_digest(fields: Mapping[str, str], label: str | None) -> str:
    """First 16 hex digits of the SHA-256 of a row's fields, in any order, and label: what is told
    of a row holds for a row of the same digest only."""
    content = msgspec.json.encode((sorted(fields.items()), label))
    return sha256(content).hexdigest()[:16]


def add_usage(a: Usage, b: Usage | None) -> Usage:
    if b is None or not (b.prompt_tokens or b.completion_tokens):
        return a
    return Usage(
        prompt_tokens=a.prompt_tokens + b.prompt_tokens,
        completion_tokens=a.completion_tokens + b.completion_tokens,
        cached_prompt_tokens=a.cached_prompt_tokens + b.cached_prompt_tokens,
    )
