"""Reading a page back."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta"}
_LINKS = {"src", "href", "xlink:href", "srcset", "data", "action", "poster"}


class Page(HTMLParser):
    """Elements with their attributes, text by element, and whether every tag was closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text, self.source = [], [], [], text
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append((self.open[-1] if self.open else "", data))

    def all(self, tag, css=None):
        return [
            a for t, a in self.elements if t == tag and (css is None or css in a.get("class", "").split())
        ]

    def assert_alone(self):
        """Nothing is loaded from elsewhere: links and urls point into the page, and there are no scripts."""
        assert not self.all("script") and not self.all("link") and "@import" not in self.source
        for _, attributes in self.elements:
            assert all(attributes[name].startswith("#") for name in attributes.keys() & _LINKS)
        assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", self.source))
        names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # of XML, not links
        assert {*re.findall(r"\w+://[^\"' ]*", self.source)} <= names
