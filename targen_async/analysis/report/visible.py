"""Texts of others, made fit to be looked at: nothing in them acts, hides or turns a line round."""

from typing import Any

_TURNING = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""The bidirectional controls (Unicode Standard Annex 9)."""
_HIDDEN = (*range(0x80, 0xA0), 0x200B, 0x2060, 0xFEFF, *range(0xE0000, 0xE0080))
"""C1 controls, what has no width and stands between no letters, and the tag characters."""
_SEPARATORS = (0x2028, 0x2029)
_SURROGATES = range(0xD800, 0xE000)
_SHOWN: dict[int, str] = {
    **{
        code: f"\u2039U+{code:04X}\u203a"
        for code in (*_TURNING, *_HIDDEN, *_SEPARATORS, *_SURROGATES)
    },
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: "\u2421",
}


def visible(text: str) -> str:
    """The text with its control characters as signs: U+202E, which turns a line round, as
    its number in angle quotes.

    Line feeds and tabs stay, as do joiners, which letters of some scripts need.
    """
    return text.translate(_SHOWN)


def all_visible(value: Any) -> Any:  # noqa: ANN401
    """The same for every text of a value as msgspec.to_builtins() gives it, keys too."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(name): all_visible(part) for name, part in value.items()}
    return [all_visible(part) for part in value] if isinstance(value, list | tuple) else value


def in_script(json: str) -> str:
    """JSON that may stand in a script element: no tag or comment begins or ends in it."""
    return json.replace("<", "\\u003c")
