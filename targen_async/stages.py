"""The four steps as pipeline stages: render -> complete -> parse -> drafts."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from hashlib import blake2b
from random import Random

import anyio
from msgspec import Struct
from msgspec.structs import replace

from targen_async.ask import ASKS, CALL_FAULTS, Asked, Asker, Refused, memo_of
from targen_async.config import Data
from targen_async.journal import Items
from targen_async.parse import Form, answer_text, read_list, read_verdicts
from targen_async.pipeline import Send
from targen_async.plan import context_key, seed_key
from targen_async.records import (
    Ballot,
    Block,
    ChatRequest,
    ContextAnswer,
    ContextCall,
    Failure,
    Judged,
    Message,
    SeedAnswer,
    SeedCall,
    SlotAnswer,
    SlotCall,
    StageName,
    Usage,
    add_usage,
)
from targen_async.rows import Draft, Rows
from targen_async.verdicts import Verdicts, digest_of

BATCH_PROMPT_BYTES = 48_000
"""Rows judged in one call hold at most about this much text (some 12,000 tokens)."""
_VERDICT_OVERHEAD_TOKENS = 64
_VOTE_TEMPERATURE = 0.7


class Prompt(Struct, frozen=True, gc=False):
    """All of a request but its plan key and the number of the asking."""

    stage: StageName
    variant: str
    values: Mapping[str, str]
    form: Form
    max_tokens: int
    temperature: float
    model: str


class Steps:
    """What the four stages send, and what they make of the answers."""

    def __init__(
        self,
        asker: Asker,
        rows: Rows,
        data: Data,
        known: Verdicts,
        *,
        plain: bool,
        plain_judge: bool,
    ) -> None:
        self._known = known
        self._asker = asker
        self._rows = rows
        self._task = rows.task
        self._data = data
        self._plain = plain
        self._plain_judge = plain_judge
        self.judges = data.correction.mode != "off"
        """Are rows judged? Else those of `instances` go on as they are."""
        self._labels = "\n".join(f"- {name}: {about}" for name, about in rows.task.labels.items())
        self._question = self._asked(self.correction_prompt([]), "", 0)
        self.seeds_per_call = data.seeds_per_context or rows.task.seeds.per_call

    # ---- requests

    def request(self, prompt: Prompt, key: str, number: int) -> ChatRequest:
        """The number-th asking of a question: another number is another random seed."""
        request = self._asked(prompt, key, number)
        request = replace(request, memo=memo_of(request))
        if not (self._plain_judge if prompt.stage == "correction" else self._plain):
            return request
        # Its memo stays: a run that goes on elsewhere knows what was answered, in either form.
        system, user = request.messages
        words = f"\n\nAnswer with one JSON object and nothing else: {prompt.form.example}"
        messages = (system, Message(role="user", content=user.content + words))
        return replace(request, messages=messages, json_schema=None)

    def _asked(self, prompt: Prompt, key: str, number: int) -> ChatRequest:
        template = self._task.template(prompt.stage, prompt.variant)
        text = template.render({"description": self._task.description, **prompt.values})
        asked = f"{key}~{number}" if number else key
        return ChatRequest(
            key=asked,
            model=prompt.model,
            messages=(
                Message(role="system", content=self._task.system),
                Message(role="user", content=text),
            ),
            temperature=prompt.temperature,
            top_p=self._data.top_p,
            max_tokens=prompt.max_tokens,
            seed=seed_of(self._data.random_seed, asked),
            schema_name=_schema_name(self._task.name, prompt.stage, prompt.variant),
            json_schema=prompt.form.schema,
        )

    def contexts_prompt(self, call: ContextCall) -> Prompt:
        spec = self._task.contexts
        values = {"count": str(spec.per_call), **call.axes}
        return self._prompt("contexts", "", values, self._rows.forms.contexts, spec.max_tokens)

    def seeds_prompt(self, call: SeedCall) -> Prompt:
        values = {"count": str(self.seeds_per_call), "context": call.context.text, **call.axes}
        max_tokens = self._task.seeds.max_tokens
        return self._prompt("seeds", "", values, self._rows.forms.seeds, max_tokens)

    def instance_prompt(self, call: SlotCall) -> Prompt:
        spec = self._task.instances
        variant = ""
        if spec.template_by:
            variant = call.label if spec.template_by == "label" else call.axes[spec.template_by]
        values = {
            **call.seed.call.context.axes,
            **call.seed.call.axes,
            **call.axes,
            "seed": self._rows.seed_text(call.seed),
            "context": call.seed.call.context.text,
            "label": call.label,
            "label_meaning": self._task.labels.get(call.label, ""),
            "position": call.label,
        }
        return self._prompt(
            "instances", variant, values, self._rows.forms.instances, spec.max_tokens
        )

    def _prompt(
        self, stage: StageName, variant: str, values: Mapping[str, str], form: Form, max_tokens: int
    ) -> Prompt:
        return Prompt(
            stage, variant, values, form, max_tokens, self._data.temperature, self._data.model
        )

    def correction_prompt(self, items: list[dict[str, str]]) -> Prompt:
        correction = self._data.correction
        lines = "\n".join(json.dumps(item, ensure_ascii=False) for item in items)
        budget = self._task.correction.max_tokens_per_item * len(items) + _VERDICT_OVERHEAD_TOKENS
        return Prompt(
            "correction",
            "",
            {"items": lines, "labels": self._labels},
            self._rows.forms.correction,
            budget,
            0.0 if correction.votes == 1 else _VOTE_TEMPERATURE,
            correction.model or self._data.model,
        )

    # ---- the stages

    async def contexts(self, call: ContextCall, send: Send) -> None:
        key = context_key(self._task.name, call.index)
        asked = await self._ask_list(key, self.contexts_prompt(call))
        if asked is not None:
            offset, failure = _outcome(asked)
            await send(
                ContextAnswer(call=call, offset=offset, failure=failure, wasted=asked.wasted)
            )

    async def seeds(self, call: SeedCall, send: Send) -> None:
        key = seed_key(self._task.name, call.index)
        asked = await self._ask_list(key, self.seeds_prompt(call))
        if asked is not None:
            offset, failure = _outcome(asked)
            await send(SeedAnswer(call=call, offset=offset, failure=failure, wasted=asked.wasted))

    async def _ask_list(self, key: str, prompt: Prompt) -> Asked | Refused | None:
        return await self._asker.ask(
            prompt.stage,
            partial(self.request, prompt, key),
            lambda result: read_list(answer_text(result), prompt.form),
        )

    async def instances(self, calls: tuple[SlotCall, ...], send: Send) -> None:
        """Have the rows of one call written, which are most often one."""
        prompt = self.instance_prompt(calls[0])
        asked = await self._asker.ask(
            "instances", partial(self.request, prompt, calls[0].key), self._rows.outputs
        )
        if asked is None:
            return
        offset, failure = _outcome(asked)
        faults: list[str | None] = [None] * len(calls)
        if isinstance(asked, Asked):
            self._rows.keep(Draft(asked.result, asked.value))
            faults = self._rows.faults(calls, asked.value)
        wasted = asked.wasted
        for call, invalid in zip(calls, faults, strict=True):
            answer = SlotAnswer(
                call=call, offset=offset, failure=failure, invalid=invalid, wasted=wasted
            )
            await send(answer if self.judges else Judged(answer=answer, ballots=(), wasted=Usage()))
            wasted = Usage()

    async def correction(self, item: Block | SlotAnswer, send: Send) -> None:
        """Judge a block; what is not to be judged passes through."""
        if isinstance(item, SlotAnswer):
            await send(Judged(answer=item, ballots=(), wasted=Usage()))
            return
        votes: list[dict[int, Ballot]] = [{} for _ in range(self._data.correction.votes)]
        wasted = [Usage() for _ in votes]

        async def vote(index: int) -> None:
            key = f"{item.key}/v{index}"
            members = self._not_known(index, item.members, votes[index])
            if members:
                wasted[index] = await self._judge(key, index, members, votes[index])

        if len(votes) == 1:
            await vote(0)
        else:
            async with anyio.create_task_group() as group:
                for index in range(len(votes)):
                    group.start_soon(vote, index)
        slots = [member.call.slot for member in item.members]
        if any(slot not in ballots for ballots in votes for slot in slots):
            return  # The run takes no new calls; the block is judged when it is resumed.
        spent = Usage()
        for usage in wasted:
            spent = add_usage(spent, usage)
        for member in item.members:
            ballots = tuple(ballots[member.call.slot] for ballots in votes)
            await send(Judged(answer=member, ballots=ballots, wasted=spent))
            spent = Usage()

    def _not_known(
        self, vote: int, members: Sequence[SlotAnswer], ballots: dict[int, Ballot]
    ) -> list[SlotAnswer]:
        """Fill in what was said of rows when they stood in another block; returns the others."""
        rest: list[SlotAnswer] = []
        for member in members:
            digest = self._digest(self._view(member))
            for offset, key, count, place in self._known.of(member.call.slot, vote, digest):
                ids = tuple(item_ids(self._data.random_seed, key, count))
                if self._rows.judges(offset, ids):
                    ballots[member.call.slot] = Ballot(offset=offset, id=ids[place])
                    break
            else:
                rest.append(member)
        return rest

    def _view(self, member: SlotAnswer) -> dict[str, str]:
        shown = self._data.correction.mode == "shown"
        return self._rows.judged_view(member.call, member.offset, shown=shown)

    def _digest(self, view: dict[str, str]) -> bytes:
        """All that a judge is told of a row: the request without its other items."""
        return digest_of(self._question, view)

    async def _judge(
        self, key: str, vote: int, members: list[SlotAnswer], ballots: dict[int, Ballot]
    ) -> Usage:
        """One vote on some rows, halved until each has an answer; returns the tokens wasted."""
        Random(f"{self._data.random_seed}:{key}").shuffle(members)
        ids = item_ids(self._data.random_seed, key, len(members))
        views = [self._view(member) for member in members]
        items = [{"id": id_, **view} for id_, view in zip(ids, views, strict=True)]
        alone = len(members) == 1
        wasted = Usage()
        if (
            alone
            or sum(len(text.encode()) for item in items for text in item.values())
            <= BATCH_PROMPT_BYTES
        ):
            prompt = self.correction_prompt(items)
            digests = [self._digest(view) for view in views]
            rows = [(m.call.slot, d) for m, d in zip(members, digests, strict=True)]
            self._asker.show(Items(key=key, vote=vote, rows=rows), self.request(prompt, key, 0))
            asked = await self._asker.ask(
                "correction",
                partial(self.request, prompt, key),
                lambda result: read_verdicts(answer_text(result), prompt.form, ids),
                asks=ASKS if alone else 1,
            )
            if asked is None:
                return wasted
            wasted = asked.wasted
            if isinstance(asked, Asked):
                for id_, member in zip(ids, members, strict=True):
                    ballots[member.call.slot] = Ballot(offset=asked.result.offset, id=id_)
                return wasted
            if alone or (asked.failure.kind in CALL_FAULTS and asked.failure.kind != "rejected"):
                for member in members:
                    ballots[member.call.slot] = Ballot(offset=-1, id="", failure=asked.failure)
                return wasted
        middle = (len(members) + 1) // 2
        for half, part in enumerate((members[:middle], members[middle:])):
            wasted = add_usage(wasted, await self._judge(f"{key}.{half}", vote, part, ballots))
        return wasted


def _outcome(asked: Asked | Refused) -> tuple[int, Failure | None]:
    if isinstance(asked, Asked):
        return asked.result.offset, None
    return -1, asked.failure


@lru_cache(maxsize=256)
def _schema_name(*parts: str) -> str:
    return "-".join(part for part in parts if part)


def seed_of(random_seed: int, key: str) -> int:
    """The `seed` parameter of a call: 31 bits, from the run's seed and the plan key."""
    digest = blake2b(f"{random_seed}:{key}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def item_ids(random_seed: int, key: str, count: int) -> list[str]:
    """Distinct short ids for the rows of a batch; not 1, 2, 3, so that a miscount shows."""
    random = Random(f"{random_seed}:ids:{key}")
    letters = "abcdefghjkmnpqrstuvwxyz"
    ids: dict[str, None] = {}
    while len(ids) < count:
        ids[f"{random.choice(letters)}{random.choice(letters)}{random.randrange(10, 100)}"] = None
    return list(ids)
