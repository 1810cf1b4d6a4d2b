"""HTML pages to plain text: what a reader reads, without the furniture around it."""

import re
from html.parser import HTMLParser

# Elements without text for a reader.
DROPPED_TAGS = frozenset(
    {
        *("script", "style", "nav", "header", "footer", "head", "svg"),
        *("button", "form", "select", "noscript", "template", "iframe", "object"),
    }
)

# Furniture that documentation tools mark by class, id or role alone. Only elements that are always closed may be
# dropped by such a mark, and by their id only those that are not sections, whose ids come from their titles.
MARKED_TAGS = frozenset(("div", "section", "table", "details", "ul", "a", "span", "sup", "summary"))
DROPPED_CLASSES = frozenset(
    {
        *("sphinxsidebar", "related", "footer", "headerlink", "mobile-nav", "viewcode-link", "viewcode-back"),  # Sphinx
        *("navheader", "navfooter", "toc"),  # DocBook
        *("toplang", "bottomlang", "up", "top", "permalink"),  # Apache
        *("picker", "mark", "legacy", "changelog"),  # Node.js
        "nosearch",  # SQLite
        *("nav-wrapper", "nav-wide-wrapper"),  # mdBook
        *("sidebar", "sidebar-elems", "srclink", "source", "since", "rightside", "out-of-band", "hideme"),  # rustdoc
        "expand-collapse-items",  # Erlang
    }
)
ID_TAGS = frozenset(("div", "details"))
DROPPED_IDS = frozenset(
    ("hd", "ft", "page-header", "path", "footer", "quickview", "column2", "toc", "toc_sub", "menu-bar", "leftnav")
)

LINE_TAGS = frozenset(
    {
        *("br", "hr", "div", "section", "article", "main", "aside"),
        *("li", "dt", "dd", "tr", "thead", "tbody", "caption", "figcaption"),
    }
)
GAP_TAGS = frozenset(
    {*("p", "pre", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6"), *("table", "ul", "ol", "dl", "details")}
)
CELL_TAGS = frozenset(("td", "th"))

SPACES = re.compile(r"[ \t\r\n\f\xa0]+")


def html_to_text(html: str) -> str:
    """The text of a page: a line per block, an empty line around paragraphs, ``pre`` as it is, cells joined by " | ".

    Malformed HTML gives some text too: nothing is ever refused.
    """
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.text()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._lines: list[str] = []
        self._line: list[str] = []
        self._num_pre = 0  # how many pre elements are open
        self._dropped: str | None = None  # the element being left out, and how many of that name are open
        self._num_dropped = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._dropped is not None:
            self._num_dropped += tag == self._dropped
        elif tag in DROPPED_TAGS or _is_furniture(tag, attrs):
            self._dropped, self._num_dropped = tag, 1
        elif tag in CELL_TAGS:
            if SPACES.sub("", "".join(self._line)):
                self._line.append(" | ")
        else:
            self._break(tag)
            self._num_pre += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if self._dropped is not None:
            self._num_dropped -= tag == self._dropped
            if not self._num_dropped:
                self._dropped = None
            return
        self._break(tag)
        if tag == "pre":
            self._num_pre = max(0, self._num_pre - 1)

    def handle_data(self, data: str) -> None:
        if self._dropped is None:
            self._line.append(data)

    def _break(self, tag: str) -> None:
        if tag in GAP_TAGS or tag in LINE_TAGS:
            self._end_line()
            if tag in GAP_TAGS:
                self._lines.append("")

    def _end_line(self) -> None:
        text = "".join(self._line)
        self._line = []
        if self._num_pre:
            self._lines += [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
        elif text := SPACES.sub(" ", text).strip(" |"):
            self._lines.append(text)

    def text(self) -> str:
        self._end_line()
        return tidy("\n".join(self._lines))


def tidy(text: str) -> str:
    """No spaces at line ends, no two empty lines in a row, none at the ends."""
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def _is_furniture(tag: str, attrs: list[tuple[str, str | None]]) -> bool:
    if tag not in MARKED_TAGS:
        return False
    for name, value in attrs:
        if name == "class" and not DROPPED_CLASSES.isdisjoint((value or "").split()):
            return True
        if (name, value) == ("role", "navigation") or (name == "id" and value in DROPPED_IDS and tag in ID_TAGS):
            return True
    return False
