"""Texts that come from elsewhere, made fit to be shown. Pure."""

from __future__ import annotations


def printable(text: str, most: int = 0) -> str:
    """``text`` with an escape, such as ``\\x1b`` or ``\\u202e``, in the place of each character that a
    terminal, a browser or a parser would obey or refuse; with ``most``, at most so many characters of it.

    Control characters, line ends, marks that turn the direction of writing, and lone surrogates are escaped.
    """
    if not text.isprintable():
        text = "".join([c if c.isprintable() else c.encode("unicode_escape").decode() for c in text])
    if most and len(text) > most:
        half = most // 2
        text = f"{text[: most - half - 1]}…{text[len(text) - half :]}"
    return text


def printable_json(text: str) -> str:
    """A JSON document in which such characters, but for the line ends between values, are JSON's escapes."""
    if text.isascii() and "\x7f" not in text:
        return text  # JSON escapes the other control characters of ASCII itself
    return "".join([c if c.isprintable() or c == "\n" else _json_escape(c) for c in text])


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join([f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)])
