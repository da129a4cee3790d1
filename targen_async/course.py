"""How a run goes on from its pilot: which calls depend on n, and what they may take."""

import math
import random
from collections.abc import Mapping

import msgspec
from msgspec import Struct

from targen_async.config import Prices, RunConfig
from targen_async.ledger import Role, usd_of
from targen_async.pilot import Call, Pilot
from targen_async.plan import Grouping, RowPlan, RowPlanState
from targen_async.records import StageName, Usage
from targen_async.tasks import Task

AHEAD = 3
"""Rows are asked for before earlier ones are committed: at most about so many times the calls in
flight."""
PRIOR = 0.25
"""Of what was never seen it is assumed to have been seen so often: the weight of not knowing."""


OUTSIDE = 0.01
"""Share of the draws left out at each end of a range: with what the model of a run leaves out, at
least nine of ten runs end inside."""


class Range(Struct, frozen=True, kw_only=True):
    low: float
    likely: float
    high: float


def range_of(draws: list[float], spent: float = 0.0) -> Range:
    """Where draws lie, on top of what is `spent`."""
    ordered = sorted(draws)

    def at(share: float) -> float:
        return spent + ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return Range(low=at(OUTSIDE), likely=at(0.5), high=at(1 - OUTSIDE))


class Sums:
    """Calls and tokens of a part of a run."""

    def __init__(self) -> None:
        self.calls: dict[StageName, float] = {}
        self.asked: dict[Role, float] = {}
        """Calls by who was asked."""
        self._tokens: dict[Role, list[float]] = {}
        """Prompt tokens, those of them that were cached, and completion tokens."""

    @property
    def requests(self) -> float:
        return sum(self.calls.values())

    @property
    def prompt(self) -> float:
        return sum(prompt for prompt, _, _ in self._tokens.values())

    @property
    def completion(self) -> float:
        return sum(completion for _, _, completion in self._tokens.values())

    @property
    def tokens(self) -> float:
        return self.prompt + self.completion

    def of(self, role: Role) -> float:
        """Tokens of what one role is asked."""
        prompt, _, completion = self._tokens.get(role, (0.0, 0.0, 0.0))
        return prompt + completion

    def usd(self, prices: Mapping[Role, Prices]) -> float:
        """US dollars; every role in it needs a price."""
        return sum(self.usd_of(role, prices[role]) for role in self._tokens)

    def usd_of(self, role: Role, prices: Prices) -> float:
        """US dollars for what one role is asked."""
        prompt, cached, completion = self._tokens.get(role, (0.0, 0.0, 0.0))
        usage = Usage(
            prompt_tokens=round(prompt),
            cached_prompt_tokens=round(cached),
            completion_tokens=round(completion),
        )
        return usd_of(usage, prices)

    def count(self, stage: StageName, calls: float, shares: Mapping[Role, float]) -> None:
        """So many calls of a stage; `shares`: which part of them each role is asked."""
        self.calls[stage] = calls
        for role, share in shares.items():
            self.asked[role] = self.asked.get(role, 0.0) + calls * share

    def add(self, role: Role, prompt: float, cached: float, completion: float) -> None:
        total = self._tokens.setdefault(role, [0.0, 0.0, 0.0])
        total[0] += prompt
        total[1] += cached
        total[2] += completion

    def add_calls(self, calls: list[Call], weights: list[float]) -> None:
        """Calls like these, each so many times."""
        for call, weight in zip(calls, weights, strict=True):
            one = call.usage
            if one is not None:
                self.add(
                    call.role,
                    one.prompt_tokens * weight,
                    one.cached_prompt_tokens * weight,
                    one.completion_tokens * weight,
                )


def spent(pilot: Pilot) -> Sums:
    """What the pilot took; a call without usage took as much as the mean of its stage."""
    sums = Sums()
    for stage, one in pilot.stages.items():
        sums.count(stage, len(one.calls), _shares(one.calls))
        told = [call for call in one.calls if call.usage]
        sums.add_calls(told, [len(one.calls) / len(told)] * len(told) if told else [])
    return sums


class Course:
    """Draws ways in which the rest of a run may go."""

    def __init__(self, config: RunConfig, task: Task, pilot: Pilot) -> None:
        data = config.data
        self._pilot = pilot
        self._votes = 0 if data.correction.mode == "off" else data.correction.votes
        self._block = data.correction.per_call or task.correction.per_call
        self._rows_per_call = task.rows_per_call
        self._rows_per_seed = data.rows_per_seed or task.instances.rows_per_seed
        self._contexts = data.contexts
        self._seeds_per_call = data.seeds_per_context or task.seeds.per_call
        self._ahead = AHEAD * config.delivery.limits.max_in_flight
        plan = pilot.plan
        moved = sum(sum(row.values()) for row in plan.moved.values())
        self._kept = sum(row.get(label, 0) for label, row in plan.moved.items())
        self._moved = moved - self._kept
        self._lost = sum(plan.tried.values()) - moved
        self._missing = max(0, config.delivery.n - moved)
        self._tried = plan.watermark
        self._asked = pilot.stage("instances").questions * self._rows_per_call
        self._planned = planned(config, task, plan)
        self._shares = {stage: _shares(one.calls) for stage, one in pilot.stages.items()}
        self._trouble = any(len(one.calls) > one.questions for one in pilot.stages.values())

    def draw(self, luck: random.Random) -> Sums:
        """One way: what is not known is drawn from what the pilot leaves possible.

        What the pilot has not seen at all may be rare, or never happen: as likely as not.
        """
        sums = Sums()
        again = self._trouble or luck.random() < 0.5
        slots = max(0.0, self._slots(luck) - self._asked)
        self._draw_contexts(sums, luck, again)
        self._draw_seeds(sums, luck, again, slots + self._asked)
        self._spend(sums, "instances", slots / self._rows_per_call, luck, again)
        if self._votes:
            # The last blocks of a wave are shorter than the others.
            blocks = max(0.0, slots / self._block + luck.uniform(-1, 3))
            self._judge(sums, blocks * self._votes, slots * self._votes, luck, again)
        return sums

    def _slots(self, luck: random.Random) -> float:
        """How many row slots are asked for in the whole run."""
        kept, moved, lost = (
            luck.gammavariate(count + PRIOR, 1) if count or luck.random() < 0.5 else 0.0
            for count in (self._kept, self._moved, self._lost)
        )
        # A row that changes its label helps where there is room for it.
        fair = (kept + moved * luck.random()) / ((kept + moved + lost) or 1) or 1.0
        spread = math.sqrt(self._missing * (1 - fair)) / fair
        tried = self._tried + self._missing / fair + luck.gauss(0, spread)
        if tried < self._planned:
            # Rows are asked for ahead of those that are committed, as far as they are planned.
            return min(self._planned, tried + luck.uniform(0, self._ahead))
        return tried + luck.uniform(0, spread)

    def _draw_contexts(self, sums: Sums, luck: random.Random, again: bool) -> None:
        """Their number does not depend on n; the pilot may have ended before all were asked for."""
        seen = self._pilot.stage("contexts")
        missing = self._contexts - sum(seen.useful)
        if seen.useful and missing > 0:
            each = max(1.0, sum(seen.useful) / len(seen.useful))
            self._spend(sums, "contexts", math.ceil(missing / each), luck, again)

    def _draw_seeds(self, sums: Sums, luck: random.Random, again: bool, slots: float) -> None:
        seen = self._pilot.stage("seeds")
        if not seen.useful:
            return
        got = sum(seen.useful)
        offered = max(got, seen.questions * self._seeds_per_call)
        share = 1.0
        if offered > got or luck.random() < 0.5:
            share = luck.betavariate(got + PRIOR, offered - got + PRIOR)
        missing = slots / self._rows_per_seed - got
        questions = missing / (self._seeds_per_call * share) + luck.uniform(-1, 1)
        self._spend(sums, "seeds", max(0.0, questions), luck, again)

    def _spend(
        self, sums: Sums, stage: StageName, questions: float, luck: random.Random, again: bool
    ) -> None:
        """So many more questions like those that were seen, some of them put again."""
        seen = self._pilot.stage(stage)
        calls = questions
        if again:
            repeated = len(seen.calls) - seen.questions
            calls *= 1 + luck.gammavariate(repeated + PRIOR, 1 / (seen.questions + PRIOR))
        sums.count(stage, calls, self._shares.get(stage, {}))
        told = [call for call in seen.calls if call.usage]
        weights = _weights(len(told), luck)
        sums.add_calls(told, [calls * weight / sum(weights) for weight in weights])

    def _judge(
        self, sums: Sums, first: float, items: float, luck: random.Random, again: bool
    ) -> None:
        """Calls for judgement cost by the call and by the row; blocks are halved that fail."""
        seen = self._pilot.stage("correction")
        fails = math.ceil((len(seen.calls) - seen.questions) / 2)
        failing = luck.gammavariate(fails + PRIOR, 1 / (seen.questions + PRIOR)) if again else 0.0
        calls, shown = first * (1 + 2 * failing), items * (1 + failing)
        sums.count("correction", calls, self._shares.get("correction", {}))
        told = [call for call in seen.calls if call.usage and call.items]
        if not told:
            return
        weights = _weights(len(told), luck)
        parts = [
            each * calls + row * shown
            for each, row in (
                _line_through(told, weights, what)
                for what in ("prompt_tokens", "cached_prompt_tokens", "completion_tokens")
            )
        ]
        sums.add(told[0].role, *parts)


def planned(config: RunConfig, task: Task, state: RowPlanState) -> int:
    """How many row slots stand in the plan once n is raised from the pilot's to the run's."""
    group = task.group
    grouping = Grouping()
    if group is not None:
        grouping = Grouping(size=group.size, whole=group.whole, labels=group.labels)
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=RowPlanState)
    plan = RowPlan(task.classes, config.data.random_seed, state, grouping)
    plan.aim(config.delivery.n)
    return plan.planned


def _shares(calls: list[Call]) -> dict[Role, float]:
    """Which part of the calls each role was asked."""
    roles = [call.role for call in calls]
    return {role: roles.count(role) / len(roles) for role in dict.fromkeys(roles)}


def _weights(count: int, luck: random.Random) -> list[float]:
    """The Bayesian bootstrap: each call seen stands for an unknown share of those to come.

    A pilot's calls share a few contexts and are alike: two count as one.
    """
    return [luck.gammavariate(0.5, 1) + 1e-9 for _ in range(count)]


def _line_through(calls: list[Call], weights: list[float], what: str) -> tuple[float, float]:
    """Tokens of a call and tokens of a row in it, neither negative, by weighted least squares."""
    points = [
        (weight, call.items, getattr(call.usage, what))
        for weight, call in zip(weights, calls, strict=True)
    ]
    total = sum(weights)
    mean_x = sum(w * x for w, x, _ in points) / total
    mean_y = sum(w * y for w, _, y in points) / total
    spread = sum(w * (x - mean_x) ** 2 for w, x, _ in points)
    if spread > 1e-9:
        slope = sum(w * (x - mean_x) * (y - mean_y) for w, x, y in points) / spread
        if 0 <= slope <= mean_y / mean_x:
            return mean_y - slope * mean_x, slope
    return 0.0, mean_y / mean_x
