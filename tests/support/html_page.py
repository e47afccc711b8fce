"""Reading a page back."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "line", "rect"}


class Page(HTMLParser):
    """Elements with their attributes, text by element, and whether every tag was closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
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
