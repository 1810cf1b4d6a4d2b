"""The page's files without a browser: nothing inline, nothing foreign, nothing missing; and its modules under node."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

STATIC = Path(__file__).parents[2] / "pelagos" / "serving" / "static"
MODULES = sorted(STATIC.glob("*.js"))
NODE = shutil.which("node")
NODE_TESTS = sorted(Path(__file__).parent.glob("node/*.test.mjs"))


class Page(HTMLParser):
    """What index.html names and holds."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.texts.append((self.tags[-1][0] if self.tags else "", data.strip()))


@pytest.fixture(scope="module")
def page() -> Page:
    page = Page()
    page.feed((STATIC / "index.html").read_text())
    return page


def ids(page: Page) -> set[str]:
    return {attributes["id"] or "" for _, attributes in page.tags if "id" in attributes}


def test_nothing_is_inline_so_that_a_strict_policy_can_hold(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag != "style"
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
    assert not [data for tag, data in page.texts if tag == "script" and data]


def test_every_file_is_there_and_ours(page: Page) -> None:
    named = [attributes[name] for _, attributes in page.tags for name in ("src", "href") if attributes.get(name)]
    files = [name for name in named if not name.startswith("#")]
    assert set(files) == {"favicon.svg", "style.css", "thread.css", "app.js"}
    assert all((STATIC / name).is_file() for name in files)
    for path in STATIC.iterdir():
        text = path.read_text()
        hosts = set(re.findall(r"(?:https?:)?//([\w.-]+\.\w+)", text)) - {"www.w3.org"}
        assert not hosts, path.name
        assert "@import" not in text
        assert "url(" not in text
        assert text.count("\n") < 500, path.name


def test_every_element_and_icon_that_the_code_names_is_there(page: Page) -> None:
    code = "\n".join(path.read_text() for path in MODULES)
    asked = set(re.findall(r'\b(?:by|on)\("([\w-]+)"', code))
    icons = {f"icon-{name}" for name in re.findall(r'\bicon(?:Button)?\("([\w-]+)"', code)}
    used = {str(attributes["href"])[1:] for tag, attributes in page.tags if tag == "use"}
    assert len(asked) > 30
    assert asked | icons | used <= ids(page)


def test_every_field_and_button_has_a_name(page: Page) -> None:
    html = (STATIC / "index.html").read_text()
    for tag, attributes in page.tags:
        if tag in ("input", "textarea", "select") and "hidden" not in attributes:
            name = attributes.get("id") or attributes.get("name")
            place = html.index(f'id="{name}"' if "id" in attributes else f'name="{name}"')
            in_label = html.rfind("<label", 0, place) > html.rfind("</label>", 0, place)
            assert in_label or f'for="{name}"' in html, name
    for button, text in re.findall(r"<button([^>]*)>(.*?)</button>", html, re.DOTALL):
        assert "aria-label" in button or re.sub(r"<[^>]*>", "", text).strip() or 'id="ask-ok"' in button, button


def test_no_module_makes_markup_out_of_text() -> None:
    for path in MODULES:
        text = re.sub(r"//.*", "", path.read_text())
        for danger in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "srcdoc",
        ):
            assert danger not in text, (path.name, danger)


def luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_has_contrast_in_light_and_dark() -> None:
    css = (STATIC / "style.css").read_text()
    palettes = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in re.findall(r"\{([^{}]*)\}", css)]
    palettes = [palette for palette in palettes if len(palette) > 5]
    assert len(palettes) == 3
    assert palettes[1] == palettes[2]  # dark by the system and dark by choice
    for palette in palettes:
        for ground in ("ground", "raised", "sunken", "accent-soft"):
            assert contrast(palette["text"], palette[ground]) >= 7
            assert contrast(palette["soft"], palette[ground]) >= 4.5, ground
        assert contrast(palette["accent"], palette["ground"]) >= 4.5
        assert contrast(palette["accent-text"], palette["accent"]) >= 4.5
        assert contrast(palette["danger"], palette["danger-soft"]) >= 4.5
        assert contrast(palette["warning"], palette["raised"]) >= 4.5


def old_node() -> str | None:
    """Why node cannot run the modules, or None. From 20.19 on it takes a file with imports for a module."""
    if NODE is None:
        return "node is not installed: the page's modules are NOT tested"
    version = subprocess.run([NODE, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    major, minor = map(int, version.removeprefix("v").split(".")[:2])
    return None if (major, minor) >= (20, 19) else f"node {version} is too old: the page's modules are NOT tested"


def test_modules_under_node() -> None:
    if reason := old_node():
        pytest.skip(reason)
    assert NODE_TESTS
    command = [str(NODE), "--test", *map(str, NODE_TESTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert re.search(r"^# tests [1-9]\d", done.stdout, re.MULTILINE) or re.search(r"tests [1-9]\d", done.stdout)
