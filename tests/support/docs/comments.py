"""An extension of griffe, which reads the sources for the site: attributes have comments.

griffe knows strings that follow an attribute; here, ``#:`` lines stand before the attribute.
"""

from typing import Any

import griffe

_MARK = "#:"


class AttributeComments(griffe.Extension):
    """Make docstrings of the ``#:`` lines before attributes."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Read the lines above an attribute that has no docstring."""
        if attr.docstring is not None or attr.lineno is None or isinstance(attr.filepath, list):
            return
        lines = attr.lines_collection[attr.filepath]
        said: list[str] = []
        for line in reversed(lines[: attr.lineno - 1]):
            text = line.strip()
            if not text.startswith(_MARK):
                break
            said.insert(0, text.removeprefix(_MARK).strip())
        if said:
            attr.docstring = griffe.Docstring("\n".join(said), parent=attr)
