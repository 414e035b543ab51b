"""Reads an HTML page: tags, references, text; and that its tags close in order."""

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """A page as a test sees it.

    Attributes:
        tags: Names of all elements.
        references: What `src` and `href` name.
        ids: What `id` names.
        images: Alternative texts of the images.
        headings: Levels and texts of the headings, in order.
    """

    VOID = ("meta", "img", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.images: list[str] = []
        self.headings: list[tuple[int, str]] = []
        self.header_cells: list[dict[str, str | None]] = []
        self.words: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.references += [values[k] or "" for k in ("src", "href") if k in values]
        self.ids += [values["id"] or ""] if "id" in values else []
        if tag == "img":
            self.images.append(values.get("alt") or "")
        if tag == "th":
            self.header_cells.append(values)
        if tag not in self.VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)  # a shape of an SVG

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if self.open and re.fullmatch("h[1-6]", self.open[-1]):
            level, text = self.headings[-1]
            self.headings[-1] = (level, text + data)

    @property
    def text(self) -> str:
        """All that a reader sees, with single spaces."""
        return re.sub(r"\s+", " ", " ".join(self.words))

    @property
    def sections(self) -> list[str]:
        """Titles of the parts of the page."""
        return [text for level, text in self.headings if level == 2]
