"""HTML as a browser understands it."""

from __future__ import annotations

from html.parser import HTMLParser


class Shown(HTMLParser):
    """The text, the tags and the attributes of some HTML, as a browser parses it."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.text, self.tags, self.attributes = "", [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data):
        self.text += data
