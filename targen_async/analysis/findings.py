"""What the numbers say, in sentences: the faults that a person should hear of first."""

from collections.abc import Iterator, Sequence

from msgspec import Struct

from targen_async.analysis.artefacts import Artefacts, Position
from targen_async.analysis.crossfit import Unfit
from targen_async.analysis.duplicates import Duplicates
from targen_async.analysis.estimate import Estimate
from targen_async.analysis.labels import LEAST_NOISE, LabelQuality
from targen_async.analysis.overlap import Overlap

LEAST_DUPLICATES = 0.01
LEAST_LEAK = 0.05
"""How far a share, or a baseline's gain, must be off before it is told."""


class Finding(Struct, frozen=True, kw_only=True):
    """`kind`: `label_noise`, `near_duplicates`, `overlap`, `position`, `length`, `one_field`."""

    kind: str
    text: str


def findings_of(
    labels: LabelQuality,
    duplicates: Duplicates,
    artefacts: Artefacts,
    overlaps: Sequence[Overlap],
) -> tuple[Finding, ...]:
    """Faults in the order of a reader's interest; none is good news."""
    found: list[Finding] = []
    if not isinstance(labels.noise, Unfit):
        share = labels.noise.share
        if share.low is not None and share.low > LEAST_NOISE:
            text = (
                f"{_percent(share)} of the labels look wrong, or are not told by the text "
                f"({labels.noise.suspected:,} rows)"
            )
            found.append(Finding(kind="label_noise", text=text))
    for overlap in overlaps:
        if overlap.rows:
            text = f"{overlap.rows:,} rows, {_percent(overlap.share)}, overlap with {overlap.other}"
            found.append(Finding(kind="overlap", text=text))
    if duplicates.share.value >= LEAST_DUPLICATES:
        text = (
            f"{duplicates.surplus:,} rows, {_percent(duplicates.share)}, are near duplicates of "
            f"others, in {duplicates.clusters:,} clusters"
        )
        found.append(Finding(kind="near_duplicates", text=text))
    return (*found, *_leaks(artefacts))


def _leaks(artefacts: Artefacts) -> Iterator[Finding]:
    if isinstance(artefacts.position, Position):
        even = 1 / len(artefacts.position.shares)
        shares = artefacts.position.shares
        # Of two that are as far off the one that is right more often.
        slot = max(shares, key=lambda n: (round(abs(shares[n].value - even), 6), shares[n].value))
        if _off(shares[slot], even):
            text = f"{slot} is right in {_percent(shares[slot])} of the rows, not in {even:.0%}"
            yield Finding(kind="position", text=text)
        longest = artefacts.position.longest_is_right
        if _off(longest, even):
            text = f"the longest choice is right in {_percent(longest)} of the rows, not {even:.0%}"
            yield Finding(kind="length", text=text)
    for name, length in artefacts.length.items():
        if length.gain.low is not None and length.gain.low > LEAST_LEAK:
            text = f"the length of {name} alone tells {_percent(length.gain)} more labels"
            yield Finding(kind="length", text=text)
    for name, one in artefacts.one_field.items():
        if not isinstance(one, Unfit) and one.gain.low is not None and one.gain.low > LEAST_LEAK:
            text = (
                f"{name} alone tells the label: {_percent(one.accuracy)} right, "
                f"{_percent(one.gain)} more than by guessing"
            )
            yield Finding(kind="one_field", text=text)


def _off(share: Estimate, even: float) -> bool:
    if share.low is None or share.high is None:
        return False
    return abs(share.value - even) > LEAST_LEAK and not share.low <= even <= share.high


def _percent(share: Estimate) -> str:
    if share.low is None or share.high is None:
        return f"{share.value:.1%}"
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})"
