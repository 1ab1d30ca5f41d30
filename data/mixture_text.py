"""The text form of mixtures of training sets.

    10_000 @ pointodyssey + 5_000 @ tartanair(variant=hard, pairs=monst3r) + 2 * spring

| text | meaning (DUSt3R's data set algebra) |
|---|---|
| `NAME(option=value, ...)` | a set with its options |
| `N @ X` | N items of X per epoch, chosen anew in every epoch; X more than once if it is smaller |
| `n * X` | every item of X n times |
| `X + Y` | the items of X, then those of Y |

A number applies to the term to its right, `( )` group.
"""

from __future__ import annotations

import re
from typing import Any

from align3r_jax.errors import UserError
from data.mixture import Joined, Mixture, Repeated, Resized, Source

_WORD, _QUOTED, _SIGN = r"[\w./:~-]+", r"\"[^\"]*\"|'[^']*'", r"[@*+(),=]"
_TOKEN = re.compile(rf"\s*(?:(?P<word>{_WORD})|(?P<quoted>{_QUOTED})|(?P<sign>{_SIGN}))")


def parse(text: str) -> Mixture:
    """Returns the mixture of a text. Raises UserError that says where it is wrong."""
    return _Parser(text).whole()


def text(mixture: Mixture) -> str:
    """Returns a text that `parse` turns into the same mixture."""
    if isinstance(mixture, Joined):
        return " + ".join(_grouped(part) for part in mixture.parts)
    if isinstance(mixture, Resized):
        return f"{mixture.count} @ {_grouped(mixture.of)}"
    if isinstance(mixture, Repeated):
        return f"{mixture.times} * {_grouped(mixture.of)}"
    if not mixture.options:
        return mixture.name
    return f"{mixture.name}({', '.join(f'{key}={_quoted(v)}' for key, v in mixture.options)})"


def _grouped(mixture: Mixture) -> str:
    return f"({text(mixture)})" if isinstance(mixture, Joined) else text(mixture)


def _quoted(value: str) -> str:
    if re.fullmatch(_WORD, value):
        return value
    return f"'{value}'" if '"' in value else f'"{value}"'


class _Parser:
    """Recursive descent over `sum := term {+ term}`, `term := N @ term | N * term | atom`."""

    def __init__(self, text: str):
        self._text, self._at = text, 0
        self._tokens: list[tuple[str, Any, int]] = []
        place = 0
        while text[place:].strip():
            match = _TOKEN.match(text, place)
            if match is None:
                place += len(text[place:]) - len(text[place:].lstrip())
                raise self._error(f"'{text[place]}' means nothing here", place)
            kind = str(match.lastgroup)
            self._tokens.append((kind, match[kind], match.start(kind)))
            place = match.end()

    def whole(self) -> Mixture:
        result = self._sum()
        if self._at < len(self._tokens):
            raise self._wrong("the end, '+', '@' or '*'")
        return result

    def _sum(self) -> Mixture:
        parts = [self._term()]
        while self._take("+"):
            parts.append(self._term())
        return parts[0] if len(parts) == 1 else Joined(tuple(parts))

    def _term(self) -> Mixture:
        if self._take("("):
            inner = self._sum()
            self._demand(")")
            return inner
        word = self._word("a set, a number or '('")
        if not re.fullmatch(r"\d[\d_]*", word):
            return self._source(word)
        number = int(word)
        if number < 1:
            self._at -= 1
            raise self._wrong("a number of at least 1")
        if self._take("@"):
            return Resized(number, self._term())
        if self._take("*"):
            return Repeated(number, self._term())
        raise self._wrong("'@' or '*' after a number")

    def _source(self, name: str) -> Source:
        options: list[tuple[str, str]] = []
        if self._take("("):
            while not self._take(")"):
                key = self._word("an option or ')'")
                if key in dict(options):
                    self._at -= 1
                    raise self._wrong(f"'{key}' only once")
                self._demand("=")
                options.append((key, self._word(f"the value of '{key}'", quoted=True)))
                if not self._peek(")"):
                    self._demand(",")
        return Source(name, tuple(options))

    def _peek(self, sign: str) -> bool:
        return self._at < len(self._tokens) and self._tokens[self._at][:2] == ("sign", sign)

    def _take(self, sign: str) -> bool:
        found = self._peek(sign)
        self._at += found
        return found

    def _demand(self, sign: str) -> None:
        if not self._take(sign):
            raise self._wrong(f"'{sign}'")

    def _word(self, expected: str, quoted: bool = False) -> str:
        kinds = ("word", "quoted") if quoted else ("word",)
        if self._at >= len(self._tokens) or self._tokens[self._at][0] not in kinds:
            raise self._wrong(expected)
        kind, word, _ = self._tokens[self._at]
        self._at += 1
        return word[1:-1] if kind == "quoted" else word

    def _wrong(self, expected: str) -> UserError:
        if self._at < len(self._tokens):
            _, found, place = self._tokens[self._at]
            return self._error(f"got '{found}', expected {expected}", place)
        return self._error(f"it ends where {expected} is expected", len(self._text))

    def _error(self, what: str, place: int) -> UserError:
        return UserError(
            f"The mixture '{self._text}' is wrong at character {place + 1}: {what}. Example: "
            "10_000 @ pointodyssey + 5_000 @ tartanair(variant=hard)."
        )
