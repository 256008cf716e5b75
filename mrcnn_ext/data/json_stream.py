"""Reads a large JSON file piece by piece, so that an annotation file need not fit into memory."""

from __future__ import annotations

import json
from collections.abc import Iterator

__all__ = ["stream_sections"]

_CHUNK = 1 << 20  # characters
_SPACE = " \t\n\r"
_AFTER = _SPACE + ",]}:"  # what may follow a number


class _Text:
    """The text of a file from the place that has been read up to."""

    def __init__(self, file):
        self._file = file
        self._decoder = json.JSONDecoder()
        self._buffer = ""
        self._place = 0
        self._consumed = 0  # characters before the buffer

    def _more(self) -> bool:
        """Reads on; at least as much as is waiting, so that a value of any length is decoded a few times only."""
        rest = self._buffer[self._place :]
        chunk = self._file.read(max(_CHUNK, len(rest)))
        self._consumed += self._place
        self._buffer, self._place = rest + chunk, 0
        return bool(chunk)

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            while self._place < len(self._buffer) and self._buffer[self._place] in _SPACE:
                self._place += 1
            if self._place < len(self._buffer):
                return self._buffer[self._place]
            if not self._more():
                return ""

    def expect(self, characters: str) -> str:
        found = self.peek()
        if not found or found not in characters:
            end = "the end of the file: is it cut off?"
            self.fail(f"expected {' or '.join(map(repr, characters))}, got {found or end}")
        self._place += 1
        return found

    def value(self):
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._place)
            except json.JSONDecodeError as error:
                offset = error.pos - self._place
                if self._more():
                    continue
                # The buffer begins with the value now.
                cut = offset >= len(self._buffer.rstrip()) or error.msg.startswith("Unterminated")
                self._place = offset
                self.fail(error.msg + (", where the file ends: is it cut off?" if cut else ""))
            length = end - self._place
            # A number may go on in what has not been read: "-2." is -2 to the decoder.
            is_number = isinstance(value, (int, float))
            ended = end < len(self._buffer) and (not is_number or self._buffer[end] in _AFTER)
            if ended or not self._more():
                self._place += length
                return value

    def fail(self, message: str):
        raise ValueError(f"JSONDecodeError: character {self._consumed + self._place}: {message}")


def stream_sections(path: str, *, arrays: tuple[str, ...]) -> Iterator[tuple[str, object, bool]]:
    """The entries of the JSON object in a file, in its order.

    Args:
        path: of the file, in UTF-8, with or without a byte order mark.
        arrays: keys whose lists are given element by element: ``("images", element, True)`` for each. An empty list
            gives ``("images", [], False)``.

    Yields:
        (key, value, False) for any other value, a list under another key among them.

    Raises:
        ValueError: it is no JSON, and the message begins with "JSONDecodeError", or it is no object.
    """
    with open(path, encoding="utf-8-sig") as file:
        text = _Text(file)
        if text.peek() != "{":
            raise ValueError(f"it must be an object, {{...}}, and begins with {text.peek()!r}")
        text.expect("{")
        if text.peek() == "}":
            return
        while True:
            key = text.value()
            if not isinstance(key, str):
                text.fail(f"a key must be text, got {key!r}")
            text.expect(":")
            if key in arrays and text.peek() == "[":
                empty = True
                for element in _elements(text):
                    empty = False
                    yield key, element, True
                if empty:
                    yield key, [], False
            else:
                yield key, text.value(), False
            if text.expect(",}") == "}":
                return


def _elements(text: _Text) -> Iterator:
    text.expect("[")
    if text.peek() == "]":
        text.expect("]")
        return
    while True:
        yield text.value()
        if text.expect(",]") == "]":
            return
