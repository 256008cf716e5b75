"""Docstrings name things with Sphinx's roles, which Markdown does not know: they become code."""

import re

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|obj):`(~?)([^`]+)`")


def plain(text: str) -> str:
    """``:class:`~a.b.C``` as ```C```, ``:class:`a.C``` as ```a.C```."""
    return _ROLE.sub(lambda match: f"`{match[2].rpartition('.')[2] if match[1] else match[2]}`", text)


class Roles(griffe.Extension):
    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = plain(obj.docstring.value)
