"""Shows the doctests of docstrings as code in the API reference."""

import re

import griffe

DOCTEST = re.compile(r"^>>> .*(?:\n(?!\n).+)*", re.MULTILINE)


class Doctests(griffe.Extension):
    """Fences each paragraph that begins with a prompt."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        """Rewrites the docstring of a module, class, function or attribute."""
        if obj.docstring:
            value = obj.docstring.value
            obj.docstring.value = DOCTEST.sub(r"```pycon\n\g<0>\n```", value)
