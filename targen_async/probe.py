"""One journalled call before the stream opens: is the endpoint there, and does it obey a schema?"""

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from targen_async.ask import Asker, memo_of
from targen_async.config import SIMULATED_MODEL, Data
from targen_async.errors import RunStopped
from targen_async.journal import NO_SCHEMA
from targen_async.parse import list_form
from targen_async.records import ChatRequest, ChatResult, Message

# Wide enough for a model that thinks before it speaks.
_MAX_TOKENS = 256


class Probed(Struct, frozen=True, kw_only=True):
    """What the endpoint can do."""

    plain: bool
    """It takes no JSON schema: answers are asked for in words and read with tolerance."""
    model: str
    """As served."""

    @property
    def simulated(self) -> bool:
        return self.model == SIMULATED_MODEL


async def probe(asker: Asker, task_name: str, data: Data) -> Probed | None:
    """Ask for a tiny JSON object with a schema, then without one. None: the run was stopped.

    Some servers refuse a schema (400, 422, even 500), some ignore it and answer in prose with
    status 200; both get plain prompts. Raises RunStopped when the plain call is refused too.
    """
    form = list_form("words")
    request = ChatRequest(
        key=f"{task_name}/probe",
        model=data.model,
        messages=(
            Message(role="user", content='Answer with this JSON object: {"words": ["ready"]}'),
        ),
        temperature=0.0,
        max_tokens=_MAX_TOKENS,
        seed=0,
        schema_name=f"{task_name}-probe",
        json_schema=form.schema,
    )
    asked = replace(request, memo=memo_of(request))
    answer = await asker.answer("probe", asked, bury=False)
    if isinstance(answer, ChatResult):
        return Probed(plain=not _obeys(answer, form.type), model=answer.model)
    if answer is None:
        return None
    request = replace(request, key=f"{task_name}/probe-plain", schema_name=None, json_schema=None)
    plain = await asker.answer("probe", replace(request, memo=memo_of(request)), bury=False)
    if isinstance(plain, ChatResult):
        # Remembered only now: an endpoint that refused both may be mended, and is asked again.
        if answer.kind != NO_SCHEMA:
            asker.bury(asked, replace(answer, kind=NO_SCHEMA))
        return Probed(plain=True, model=plain.model)
    if plain is None:
        return None
    raise RunStopped(
        f"the endpoint refuses the simplest call: {plain.message}; check --base-url and start "
        "again, or check --model (another model wants a new --out)"
    )


def _obeys(answer: ChatResult, form_type: type) -> bool:
    start = answer.text.lstrip()
    if answer.finish_reason == "length" and (not start or start.startswith(("{", "<think>"))):
        return True  # Cut while it thought or wrote JSON; other words show an ignored schema.
    try:
        msgspec.json.decode(answer.text, type=form_type)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
