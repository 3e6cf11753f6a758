"""What the tests of pages share."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

VOID = {"meta", "img", "br", "link", "input", "path"}


class Page(HTMLParser):
    """Tags that must be balanced, their attributes, and the text inside each."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.texts = [], [], {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def data(self):
        return json.loads(next(text for text in self.texts["script"] if text.startswith("{")))


def check_closed(html: str) -> None:
    """The page loads nothing, and runs only its own script."""
    page = Page(html)
    loading = {"src", "href", "srcset", "action", "data", "style"}
    assert not [tag for tag, attributes in page.tags if loading & attributes.keys()]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    addresses = re.findall(r"(?:https?:)?//[\w.]+\.\w+[^\s\"']*", html.replace("http://www.w3.org/2000/svg", ""))
    assert addresses == []
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|innerHTML|outerHTML|insertAdjacentHTML|eval\(", html)
    policy = next(a["content"] for a in page.attributes("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        content = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert len(content) == 1
        digest = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def check_elements(html: str) -> None:
    """Every element that the script looks for is there, once."""
    identifiers = [attributes["id"] for _, attributes in Page(html).tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    asked = set(re.findall(r'(?:element|getElementById)\("([\w-]+)"\)', html))
    assert asked and asked <= set(identifiers)


@pytest.fixture(name="Page", scope="session")
def page_class() -> type[Page]:
    return Page


@pytest.fixture(name="check_closed", scope="session")
def closed_check():
    return check_closed


@pytest.fixture(name="check_elements", scope="session")
def elements_check():
    return check_elements
