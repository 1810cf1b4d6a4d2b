"""The page in Chromium against a scripted server, as a user would use it: minutes, so not in the default run."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from fake_server import FakeServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: the page is NOT tried in a browser"),
]
DONE = "document.querySelector('.answer:last-child .figures')"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    """A new tab; each server has a port, so an origin, and nothing stored, of its own."""
    chromium.attach()
    chromium.resize(1200, 800)
    chromium.problems.clear()
    chromium.hosts.clear()
    return chromium


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(pace=0.002) as server:
        yield server


@pytest.fixture
def ask(browser: Browser) -> Callable[[str], None]:
    def ask(text: str) -> None:
        browser.run("document.querySelector('#prompt').focus()")
        browser.type(text)
        browser.key("Enter")

    return ask


def texts(browser: Browser, selector: str) -> list[str]:
    found: list[str] = browser.run(f"[...document.querySelectorAll({selector!r})].map(node => node.innerText.trim())")
    return found


def test_a_chat(browser: Browser, server: FakeServer, ask: Callable[[str], None]) -> None:
    browser.open(server.url)
    assert "tiny demonstration model" in texts(browser, "#small-print")[0]
    server.pace = 0.05
    ask("Explain caches")
    browser.wait("document.querySelector('.reasoning.active[open]')")
    server.pace = 0.0
    browser.wait(DONE)
    assert browser.run("document.querySelector('.reasoning').open") is False
    assert re.match(r"Thought for \d+\.\d s · \d+ tokens", texts(browser, ".reasoning summary")[0])
    assert re.match(
        r"nano · 1,200 read \(600 cached\) · \d+ written · first after \d\.\d s · \d+ tokens/s",
        texts(browser, ".figures")[0],
    )
    assert texts(browser, ".body h4") == ["How it works"]
    assert browser.run("document.querySelectorAll('.body td').length") == 9
    assert texts(browser, "#chats a") == ["Explain caches"]
    ask("#short And?")
    browser.wait("document.querySelectorAll('.figures').length === 2")
    sent = server.chats[-1]
    assert [message["role"] for message in sent["messages"]] == ["user", "assistant", "user"]
    assert "reasoning_content" not in sent["messages"][1]
    assert sent["thinking"] == {"type": "enabled"}
    assert sent["reasoning_effort"] == "high"
    browser.reload()
    browser.wait("document.querySelectorAll('.figures').length === 2")
    assert browser.problems == []
    assert browser.hosts == {server.url.removeprefix("http://")}


def test_hostile_text_stays_text(browser: Browser, server: FakeServer, ask: Callable[[str], None]) -> None:
    browser.open(server.url)
    ask("#hostile <img src=x onerror='window.pwned=9'>")
    browser.wait(DONE)
    browser.run("document.querySelectorAll('.answer a').forEach(a => a.removeAttribute('target'))")
    assert browser.run("window.pwned") is None
    assert browser.run("document.querySelectorAll('#thread :is(script, img, iframe, object, form)').length") == 0
    hrefs = browser.run("[...document.querySelectorAll('.answer a')].map(a => a.href)")
    assert hrefs == ["https://tracker.example/pixel.png", "https://evil.example/"]
    assert "<script>" in texts(browser, ".body")[0]
    assert browser.hosts == {server.url.removeprefix("http://")}
    assert browser.problems == []


def test_stop_again_versions_edit(browser: Browser, server: FakeServer, ask: Callable[[str], None]) -> None:
    browser.open(server.url)
    ask("#endless one")
    browser.wait("document.querySelector('.body')?.innerText.includes('word 9')")
    browser.key("Escape")
    browser.wait("document.querySelector('.notice')?.innerText.includes('Stopped')")
    assert "word 9" in texts(browser, ".body")[0]
    browser.wait("!document.querySelector('#send').hidden")
    browser.click("[aria-label='Answer again']")
    browser.wait("document.querySelector('[aria-label=\"Version 2 of 2\"]')")
    browser.click("#stop")
    browser.wait("!document.querySelector('#send').hidden")
    browser.click("[aria-label='Version before']")
    browser.wait("document.querySelector('[aria-label=\"Version 1 of 2\"]')")
    browser.click("[aria-label='Edit and send again']")
    browser.run("document.querySelector('#prompt').select()")
    ask("#short two")
    browser.wait(DONE)
    assert texts(browser, ".user-text") == ["#short two"]
    assert [message["content"] for message in server.chats[-1]["messages"]] == ["#short two"]
    browser.click(".user [aria-label='Version before']")
    browser.wait("document.querySelector('.user-text').innerText === '#endless one'")
    assert "word 9" in texts(browser, ".body")[0]
    assert browser.problems == []


def test_files(browser: Browser, server: FakeServer, ask: Callable[[str], None], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("alpha beta gamma\n" * 1000)
    (tmp_path / "code.py").write_text("print('</script>')\n")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    browser.open(server.url)
    browser.choose_files("#file-input", [tmp_path / name for name in ("notes.txt", "code.py", "photo.png")])
    browser.wait("document.querySelectorAll('#chips .chip').length === 2")
    browser.wait("document.querySelector('#chips').innerText.includes('3,000 tokens')")
    assert texts(browser, "#hint") == ["photo.png is a picture, and this model reads text only."]
    ask("#short What is it?")
    browser.wait(DONE)
    content = server.chats[-1]["messages"][-1]["content"]
    assert content.startswith("[file name]: notes.txt\n[file content begin]\nalpha beta gamma\n")
    assert content.endswith("print('</script>')\n\n[file content end]\n#short What is it?")
    browser.reload()
    browser.wait("document.querySelectorAll('.user .chip').length === 2")
    ask("#short And?")
    browser.wait("document.querySelectorAll('.figures').length === 2")
    assert server.chats[-1]["messages"][0]["content"] == content


def test_drop_paste_and_keys(browser: Browser, server: FakeServer, ask: Callable[[str], None]) -> None:
    browser.open(server.url)
    browser.run("""(() => {
        const data = new DataTransfer();
        data.items.add(new File(["dropped text"], "dropped.md"));
        const event = (name) => new DragEvent(name, {dataTransfer: data, bubbles: true, cancelable: true});
        document.body.dispatchEvent(event("dragenter"));
        window.wasShown = !document.querySelector("#drop").hidden;
        document.body.dispatchEvent(event("drop"));
    })()""")
    assert browser.run("window.wasShown && document.querySelector('#drop').hidden") is True
    browser.run("""(() => {
        const data = new DataTransfer();
        data.setData("text/plain", "pasted ".repeat(2000));
        const field = document.querySelector("#prompt");
        field.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true}));
        field.focus();
    })()""")
    browser.wait("document.querySelectorAll('#chips .chip').length === 2")
    browser.type("#short one")
    browser.key("Enter", modifiers=8)
    browser.type("two")
    browser.run("""document.querySelector("#prompt").dispatchEvent(
        new KeyboardEvent("keydown", {key: "Enter", isComposing: true, bubbles: true}))""")
    assert server.chats == []  # the Enter of an input method ends a word, not the message
    browser.key("Enter")
    browser.wait(DONE)
    content = server.chats[-1]["messages"][-1]["content"]
    assert content.startswith("[file name]: dropped.md\n[file content begin]\ndropped text\n[file content end]\n")
    assert "[file name]: pasted-1.txt\n" in content
    assert content.endswith("#short one\ntwo")


def test_export_and_import(browser: Browser, server: FakeServer, ask: Callable[[str], None], tmp_path: Path) -> None:
    browser.open(server.url)
    ask("#short keep this")
    browser.wait(DONE)
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    for kind, name in (("markdown", "short-keep-this.md"), ("json", "short-keep-this.json")):
        browser.click(f"#export-{kind}")
        for _ in range(200):
            if (tmp_path / name).exists():
                break
            browser.run("new Promise(resolve => setTimeout(resolve, 20))")
    assert "## You\n\n#short keep this\n\n## nano\n" in (tmp_path / "short-keep-this.md").read_text()
    exported = json.loads((tmp_path / "short-keep-this.json").read_text())
    assert [message["role"] for message in exported["messages"]] == ["user", "assistant"]
    assert browser.problems == []


def test_reading_is_shown(browser: Browser, server: FakeServer, ask: Callable[[str], None]) -> None:
    browser.open(server.url)
    ask("#reading")
    browser.wait("document.querySelector('.notice')?.innerText.includes('Reading 20,000 of 50,000 tokens')")
    assert browser.run("document.querySelector('.notice progress').value") == 20000
    browser.wait(DONE)
    assert browser.run("document.querySelector('.notice').hidden")


def test_what_breaks_is_kept_and_told(browser: Browser, server: FakeServer, ask: Callable[[str], None]) -> None:
    browser.open(server.url)
    ask("#broken")
    browser.wait("document.querySelector('.notice.error')")
    assert texts(browser, ".body") == ["The first half of an answer, and then"]
    assert "What came so far is kept" in texts(browser, ".notice")[0]
    assert "Continue" in texts(browser, ".notice")[0]
    assert "Try again" in texts(browser, ".notice")[0]
    ask("#failing")
    browser.wait("document.querySelectorAll('.notice.error').length === 2")
    assert "the device ran out of memory" in texts(browser, ".notice")[1]
    ask("#busy")
    browser.wait("document.querySelectorAll('.notice.error').length === 3")
    assert "the queue is full" in texts(browser, ".notice")[2]
    ask("#refused")
    browser.wait("document.querySelectorAll('.notice.error').length === 4")
    assert texts(browser, ".notice")[3].startswith("temperature must be from 0 to 2, got 7.")
    server.shutdown()
    server.server_close()
    ask("nobody there")
    browser.wait("document.querySelectorAll('.notice.error').length === 5")
    assert "does not answer" in texts(browser, ".notice")[4]
    browser.run("location.hash")
    assert texts(browser, ".user-text")[-1] == "nobody there"


def test_a_cut_answer_goes_on(browser: Browser, server: FakeServer, ask: Callable[[str], None]) -> None:
    browser.open(server.url)
    ask("#cut")
    browser.wait("document.querySelector('.notice')?.innerText.includes('longest length')")
    browser.run("[...document.querySelectorAll('.notice button')].find(b => b.innerText === 'Continue').click()")
    browser.wait("document.querySelector('.body').innerText.includes('and this is the rest.') && " + DONE)
    assert texts(browser, ".body") == ["This is the start, and this is the rest."]
    last = server.chats[-1]["messages"][-1]
    assert (last["role"], last["content"], last["prefix"]) == ("assistant", "This is the start, ", True)


def test_a_closed_page_keeps_its_answer(browser: Browser, server: FakeServer, ask: Callable[[str], None]) -> None:
    browser.open(server.url)
    ask("#endless")
    browser.wait("document.querySelector('.body')?.innerText.includes('word 9')")
    browser.reload()
    browser.wait("document.querySelector('.notice.error')?.innerText.includes('What came so far is kept')")
    assert "word 9" in texts(browser, ".body")[0]


def test_list_of_chats(browser: Browser, server: FakeServer, ask: Callable[[str], None]) -> None:
    browser.open(server.url)
    for text in ("#short first about whales", "#short second about ships"):
        browser.click("#new-chat")
        ask(text)
        browser.wait(DONE)
    assert texts(browser, "#chats a") == [
        "#short second about ships".lstrip("#"),
        "#short first about whales".lstrip("#"),
    ]
    browser.key("k", modifiers=2)
    browser.type("whales")
    browser.wait("document.querySelectorAll('#chats a').length === 1")
    browser.key("Enter")
    browser.wait("document.querySelector('.user-text')?.innerText === '#short first about whales'")
    browser.click("#rename")
    browser.wait("document.querySelector('#ask').open")
    browser.run("document.querySelector('#ask-input').select()")
    browser.type("Whales")
    browser.click("#ask-ok")
    browser.wait("document.querySelector('#title').innerText === 'Whales'")
    browser.click("#delete")
    browser.wait("document.querySelector('#ask').open")
    browser.click("#ask-ok")
    browser.wait("document.querySelector('#title').innerText === 'New chat'")
    browser.reload()
    assert browser.run("document.querySelectorAll('.message').length") == 0
    browser.run("document.querySelector('#search').value = ''")
    assert len(texts(browser, "#chats a")) == 1
    assert browser.problems == []


def test_settings_and_key(browser: Browser, ask: Callable[[str], None]) -> None:
    with FakeServer(locked=True) as server:
        browser.open(server.url)
        browser.wait("document.querySelector('#banner').innerText.includes('API key')")
        browser.click("#banner button")
        browser.wait("document.querySelector('#settings').open")
        for name, value in {"key": "right", "temperature": "0.5", "maxTokens": "77", "system": "Be brief."}.items():
            browser.run(f"document.querySelector('#settings [name={name}]').value = {json.dumps(value)}")
        browser.click("#settings [value=save]")
        browser.wait("document.querySelector('#banner').hidden")
        browser.run("document.querySelector('#thinking').value = 'off'")
        browser.run("document.querySelector('#thinking').dispatchEvent(new Event('change'))")
        ask("#short hi")
        browser.wait(DONE)
        sent = server.chats[-1]
        assert (sent["temperature"], sent["max_tokens"], sent["thinking"]) == (0.5, 77, {"type": "disabled"})
        assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
        browser.reload()
        assert browser.run("document.querySelector('#thinking').value") == "off"
        assert "401" not in json.dumps(server.requests)


def test_narrow(browser: Browser, server: FakeServer, ask: Callable[[str], None]) -> None:
    browser.resize(360, 640)
    browser.open(server.url)
    browser.run("document.querySelector('#prompt').focus()")
    browser.type("Explain " + "averyveryverylongword" * 8)
    browser.click("#send")
    browser.wait(DONE)
    assert browser.run("document.documentElement.scrollWidth") == 360
    assert browser.run("document.querySelector('#scroll').scrollWidth <= 360")
    assert browser.run("document.querySelector('#sidebar').getBoundingClientRect().right") <= 0
    browser.click("#open-sidebar")
    browser.wait("document.querySelector('#sidebar').getBoundingClientRect().left === 0")
    browser.key("Escape")
    browser.wait("document.querySelector('#sidebar').getBoundingClientRect().right <= 0")
    assert browser.problems == []


def test_two_tabs(browser: Browser, server: FakeServer, ask: Callable[[str], None]) -> None:
    browser.open(server.url)
    ask("#endless")
    browser.wait("document.querySelector('.body')?.innerText.includes('word 9')")
    address = browser.run("location.href")
    first = browser.tab
    browser.attach()
    browser.open(address)
    browser.wait("document.querySelector('.notice')?.innerText.includes('Another tab')")
    browser.run("new Promise(resolve => setTimeout(resolve, 800))")
    assert "Another tab" in texts(browser, ".notice")[0]  # the first one said that it is alive
    browser.back_to(first)
    browser.click("#stop")
    browser.wait("document.querySelector('.notice').innerText.includes('Stopped')")
