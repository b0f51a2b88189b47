"""Text that any terminal, file or pipe can take, also where it has no ✓ and no β (cp1252 on Windows, ASCII)."""

import sys
from typing import TextIO

IN_WORDS = {
    "✓": "ok",
    "✗": "wrong",
    "α": "alpha",
    "β": "beta",
    "γ": "gamma",
    "η": "eta",
    "²": "^2",
    "±": "+-",
    "·": "*",
    "×": "x",
    "−": "-",
    "–": "-",
    "…": "...",
    "≈": "about",
    "≤": "<=",
    "≥": ">=",
    "→": "->",
    "⟨": "<",
    "⟩": ">",
}


def printable(text: str, encoding: str | None = None) -> str:
    """The text as it is if it can be encoded; otherwise each character that cannot in words, or as "?".

    encoding: that of sys.stdout unless given. UTF-8 takes everything.
    """
    encoding = encoding or getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "".join(_in_words(one, encoding) for one in text)
    return text


def _in_words(character: str, encoding: str) -> str:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return IN_WORDS.get(character, "?")
    return character


def in_digits(value: float, digits: int = 3) -> str:
    """A whole number or a large one with commas, any other with so many digits."""
    if isinstance(value, int):
        return f"{value:,}"
    rounded = f"{value:.{digits}g}"
    return f"{float(rounded):,.0f}" if 1000 <= abs(float(rounded)) < 1e9 else rounded


def say(*texts: object, flush: bool = False, file: TextIO | None = None) -> None:
    """Prints the texts, one a line, so that no character of theirs can stop the program. file: sys.stdout if None."""
    encoding = getattr(file, "encoding", None)
    print(*(printable(str(one), encoding) for one in texts), sep="\n", flush=flush, file=file)
