"""Pages: one HTML file each, that loads nothing.

A page opens from disk, travels by mail, and still opens in ten years. What it shows is untrusted: text that
models wrote, names that files had. So it travels as JSON in which nothing can end the element it stands in,
the browser writes it as text and never as markup, and the page's own policy allows no script or style but
the two whose hashes it names.

A kind of page called `name` has `name.html`, `name.css` and `name.js` here; what they share is in
`page.html`, `page.css` and `page.js`.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from .shading import style_rules

Pairs = Sequence[tuple[str, str]]


def render_page(
    name: str,
    kind: str,
    *,
    title: str,
    figures: Pairs,
    facts: Pairs,
    command: str,
    parts: Mapping[str, str],
    data: object,
) -> str:
    """A page as HTML.

    Args:
        name: of the files that make it.
        kind: what the line above the title says it is: "a reading".
        title: heading.
        figures: headline figures, as (label, value).
        facts: what was run, as (name, value).
        command: the command that repeats it; empty if there is none.
        parts: HTML by the name of its place in the file of this name.
        data: JSON values for its script.
    """
    style = _template("page.css") + _template(f"{name}.css") + style_rules()
    script = _template("page.js") + _template(f"{name}.js")
    return _fill(
        _template("page.html"),
        {
            "title": escape(title),
            "kind": escape(kind),
            "style": style,
            "style_hash": _hash(style),
            "script": script,
            "script_hash": _hash(script),
            "figures": _figures(figures),
            "body": _fill(_template(f"{name}.html"), parts),
            "facts": _facts(facts),
            "facts_hidden": hidden_unless(facts),
            "command": escape(command),
            "command_hidden": hidden_unless(command),
            "data": _json_in_html(data),
        },
    )


def hidden_unless(shown: Sequence[Any]) -> str:
    """The attribute that hides what would be empty."""
    return "" if shown else "hidden"


def _figures(figures: Pairs) -> str:
    items = (f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in figures)
    return f'<dl class="figures">{"".join(items)}</dl>' if figures else ""


def _facts(facts: Pairs) -> str:
    rows = (f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in facts)
    return "\n".join(rows)


def _template(name: str) -> str:
    return files("mnemonist.report").joinpath(name).read_text(encoding="utf-8")


def _fill(template: str, parts: Mapping[str, str]) -> str:
    """Replace each `{{name}}` once, in one pass: what is put in is never searched itself."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _hash(content: str) -> str:
    """What a content security policy calls the inline script or style with this content."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode('ascii')}"


def _json_in_html(data: object) -> str:
    """JSON that can neither end the script element it stands in nor begin a comment there."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
