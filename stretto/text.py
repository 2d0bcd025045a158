"""Values as text and text as values: ``parse("diloco(every=64, codec=int4)")`` and ``str(value)`` are inverse.

A part (a topology, codec, strategy, policy, …) is registered by decorating its frozen dataclass, or the function that
makes it, with ``@named("ring", kind="topology")``. The signature decides the canonical text: parameters that may be
given by position are printed by position, keyword-only ones as ``name=value``, and defaults are left out.

Parts of different kinds may share a name: ``ring`` is a topology and a graph. In an argument it is the one of the kind
that the parameter is named after, else of the kind that it stands in.

    text   = name | name "(" arg {"," arg} ")" | text "+" text
    arg    = [ident "="] value
    value  = text | number | "true" | "false" | "none" | quoted string | "{" key ":" value {"," key ":" value} "}"
    key    = name | quoted string

``a + b`` is what was registered as the sum of two parts of their kind. A dict becomes a tuple of pairs.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias, TypeVar

from stretto.errors import UnknownName, UsageError

F = TypeVar("F", bound=Callable[..., Any])

LONGEST = 4096
DEEPEST = 16


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    kind: str
    make: Callable[..., Any]
    signature: inspect.Signature

    def awaits(self, parameter: str | int) -> str:
        """The kind of part that a parameter (its name, or its place) is for."""
        if isinstance(parameter, int):
            parameter = next(islice(self.signature.parameters, parameter, None), self.kind)
        return parameter if any(parameter in alike for alike in _parts.values()) else self.kind


Pairs: TypeAlias = tuple[tuple[str, Any], ...]

_parts: dict[str, dict[str, _Part]] = {}
"""By name, then by kind."""
_sums: dict[str, Callable[[Any, Any], Any]] = {}
_by_make: dict[Callable[..., Any], _Part] = {}


def named(name: str, *, kind: str) -> Callable[[F], F]:
    """Register a class or factory under ``name``; its ``str()`` becomes its canonical text."""

    def register(make: F) -> F:
        alike = _parts.setdefault(name, {})
        if kind in alike and alike[kind].make.__module__ != make.__module__:
            raise ValueError(f"{name!r} is taken by {alike[kind].make}")
        part = alike[kind] = _Part(name, kind, make, inspect.signature(make))
        _by_make[make] = part
        if inspect.isclass(make) and "__str__" not in vars(make):
            setattr(make, "__str__", _text_of_instance)  # noqa: B010
        return make

    return register


def sums(kind: str) -> Callable[[F], F]:
    """Register what makes ``a + b`` of two parts of ``kind``; its own ``str()`` must be that text."""

    def register(make: F) -> F:
        _sums[kind] = make
        return make

    return register


def split(text: str) -> list[str]:
    """Several values in one text, between commas or semicolons that are in no brackets and no quotes.

    >>> split("allreduce, allreduce(topology=ring, codec=int8); diloco(64)")
    ['allreduce', 'allreduce(topology=ring, codec=int8)', 'diloco(64)']
    """
    found, depth = [""], 0
    for token in re.findall(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|.", text, re.DOTALL):
        depth += (token in "({") - (token in ")}")
        if token in ",;" and not depth:
            found.append("")
        else:
            found[-1] += token
    return [part.strip() for part in found if part.strip()]


def names(kind: str) -> list[str]:
    """Registered names of one kind, sorted."""
    return sorted(name for name, alike in _parts.items() if kind in alike)


def call_text(make: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """The canonical text of calling a registered ``make`` with ``arguments`` (all of them, by name)."""
    part = _by_make[make]
    words: list[str] = []
    by_position = True
    for p in part.signature.parameters.values():
        value = arguments[p.name]
        if p.default is not inspect.Parameter.empty and value == p.default:
            by_position = False
            continue
        if p.kind is inspect.Parameter.KEYWORD_ONLY:
            by_position = False
        words.append(_literal(value) if by_position else f"{p.name}={_literal(value)}")
    return f"{part.name}({', '.join(words)})" if words else part.name


def parse(text: str, kind: str) -> Any:
    """The value that ``text`` names.

    Raises:
        UnknownName: no part of that kind has this name.
        UsageError: the text is malformed, or an argument does not fit.
    """
    if len(text) > LONGEST:
        raise UsageError(f"a {kind} of {len(text)} characters is too long; the most is {LONGEST}")
    reader = _Reader(text)
    value = reader.value(kind, 0)
    reader.end()
    found = _kind_of(value)
    if found != kind:
        raise UsageError(f"{text!r} is a {found or 'plain value'}, not a {kind}; known: {', '.join(names(kind))}")
    return value


def coerce(value: Any, kind: str) -> Any:
    """``value`` itself, or what it names when it is text.

    Raises:
        UsageError: it is of another kind.
    """
    if isinstance(value, str):
        return parse(value, kind)
    if _kind_of(value) != kind:
        raise UsageError(f"{value} is not a {kind}; known: {', '.join(names(kind))}")
    return value


def _kind_of(value: Any) -> str | None:
    part = _by_make.get(type(value))
    return part.kind if part else getattr(value, "kind", None)


def _text_of_instance(self: Any) -> str:
    part = _by_make[type(self)]
    return call_text(part.make, {n: getattr(self, n) for n in part.signature.parameters})


def _literal(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    if isinstance(value, tuple):
        return "{" + ", ".join(f"{_key(key)}: {_literal(item)}" for key, item in value) + "}"
    return str(value)


def _key(key: str) -> str:
    return key if re.fullmatch(_WORD, key) else _literal(key)


_WORD = "[A-Za-z_][A-Za-z0-9_]*"
_token = re.compile(
    rf"\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<word>{_WORD})"
    r"|(?P<string>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")|(?P<sign>[(),=+{}:]))"
)
_words = {"true": True, "false": False, "none": None}


class _Reader:
    """A recursive-descent reader over the grammar in the module docstring."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str]] = []
        at, end = 0, len(text.rstrip())
        while at < end:
            m = _token.match(text, at)
            if not m:
                raise UsageError(f"cannot read {text!r} at {text[at : at + 12]!r}; write name or name(argument=value)")
            self.tokens.append((str(m.lastgroup), m[m.lastgroup or 0]))
            at = m.end()
        self.at = 0

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def take(self, sign: str | None = None) -> tuple[str, str]:
        token = self.peek()
        if sign is not None and token[1] != sign:
            found = token[1] or "the end"
            raise UsageError(f"expected {sign!r} but found {found!r} in {self.text!r}")
        self.at += 1
        return token

    def end(self) -> None:
        if self.peek()[0] != "end":
            raise UsageError(f"unexpected {self.peek()[1]!r} after the end of a value in {self.text!r}")

    def value(self, kind: str, depth: int) -> Any:
        value = self.single(kind, depth)
        while self.peek()[1] == "+":
            self.take("+")
            value = self.sum(value, self.single(kind, depth))
        return value

    def sum(self, one: Any, other: Any) -> Any:
        found = _kind_of(one)
        make = _sums.get(found or "")
        if make is None or _kind_of(other) != found:
            raise UsageError(f"{_literal(one)} + {_literal(other)} is no value, in {self.text!r}")
        return make(one, other)

    def pairs(self, kind: str, depth: int) -> Pairs:
        found: dict[str, Any] = {}
        while self.peek()[1] != "}":
            what, token = self.take()
            if what not in ("word", "string"):
                raise UsageError(f"expected a name before ':' but found {token or 'the end'!r} in {self.text!r}")
            key = token if what == "word" else _unquoted(token)
            if key in found:
                raise UsageError(f"{key!r} is given twice in {self.text!r}")
            self.take(":")
            found[key] = self.value(kind, depth + 1)
            if self.peek()[1] != "}":
                self.take(",")
        self.take("}")
        return tuple(found.items())

    def single(self, kind: str, depth: int) -> Any:
        if depth > DEEPEST:
            raise UsageError(f"{self.text[:40]!r}… is nested more than {DEEPEST} deep")
        what, token = self.take()
        if what == "number":
            return float(token) if re.search(r"[.eE]", token) else int(token)
        if what == "string":
            return _unquoted(token)
        if token == "{":
            return self.pairs(kind, depth)
        if what != "word":
            raise UsageError(f"expected a name or a number but found {token or 'the end'!r} in {self.text!r}")
        if token.lower() in _words:
            return _words[token.lower()]
        return self.part(token, kind, depth)

    def part(self, name: str, kind: str, depth: int) -> Any:
        alike = _parts.get(name)
        if alike is None:
            raise UnknownName(kind if depth == 0 else "part", name, names(kind) if depth == 0 else _parts)
        part = alike.get(kind) or next(iter(alike.values()))
        args: list[Any] = []
        keywords: dict[str, Any] = {}
        if self.peek()[1] == "(":
            self.take("(")
            while self.peek()[1] != ")":
                if self.at + 1 < len(self.tokens) and self.tokens[self.at + 1][1] == "=":
                    key = self.take()[1]
                    self.take("=")
                    if key in keywords:
                        raise UsageError(f"{name} is given {key!r} twice in {self.text!r}")
                    keywords[key] = self.value(part.awaits(key), depth + 1)
                elif keywords:
                    raise UsageError(f"in {self.text!r} an argument by position follows one by name")
                else:
                    args.append(self.value(part.awaits(len(args)), depth + 1))
                if self.peek()[1] != ")":
                    self.take(",")
            self.take(")")
        return self.make(part, args, keywords)

    def make(self, part: _Part, args: list[Any], keywords: dict[str, Any]) -> Any:
        unknown = [k for k in keywords if k not in part.signature.parameters]
        if unknown:
            raise UnknownName(f"argument of {part.name}", unknown[0], part.signature.parameters)
        try:
            return part.make(*args, **keywords)
        except TypeError as e:
            raise UsageError(f"{part.name}{part.signature}: {e}; in {self.text!r}") from e


def _unquoted(token: str) -> str:
    return re.sub(r"\\(.)", r"\1", token[1:-1])
