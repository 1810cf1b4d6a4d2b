"""Chromium without a window, driven over its debugging pipe: no port, no driver, no further package."""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Self

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
SECONDS = 15.0


class Browser:
    """One browser with one tab. Anything the page logs as an error, or fails with, is in ``problems``."""

    def __init__(self, folder: Path, *, width: int = 1200, height: int = 800) -> None:
        assert CHROMIUM is not None
        self.problems: list[str] = []
        self.hosts: set[str] = set()
        self._last_id = 0
        self._received = b""
        reads, self._write = os.pipe()
        self._read, writes = os.pipe()
        # far from 3 and 4, which the browser takes
        given = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 64) for end in (reads, writes)]
        arguments = [
            *(CHROMIUM, "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update"),
            *(f"--user-data-dir={folder}", f"--window-size={width},{height}", "--hide-scrollbars", "about:blank"),
        ]
        null = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
        ends = [(os.POSIX_SPAWN_DUP2, given[0], 3), (os.POSIX_SPAWN_DUP2, given[1], 4)]
        self._process = os.posix_spawn(CHROMIUM, arguments, os.environ, file_actions=[null, *ends], setpgroup=0)
        for end in (reads, writes, *given):
            os.close(end)
        self._session: str | None = None
        self.attach()
        self.resize(width, height)

    def attach(self, url: str = "about:blank") -> None:
        """Go on in a new tab."""
        self._session = None
        target = self.call("Target.createTarget", url=url)["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")

    @property
    def tab(self) -> str:
        assert self._session is not None
        return self._session

    def back_to(self, tab: str) -> None:
        self._session = tab
        self.call("Page.bringToFront")  # hidden pages draw nothing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._write)
        os.close(self._read)
        os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)

    def call(self, method: str, **params: Any) -> Any:
        """The result of one command of the DevTools protocol."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + SECONDS
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._last_id:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            self._received += os.read(self._read, 1 << 16)
        data, _, self._received = self._received.partition(b"\0")
        message: dict[str, Any] = json.loads(data)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.problems.append(str([value.get("description", value.get("value")) for value in params["args"]]))
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if url.startswith("http"):
                self.hosts.add(url.split("/")[2])

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && document.querySelector('#model option') !== null")

    def reload(self) -> None:
        self.call("Page.reload")
        time.sleep(0.3)
        self.wait("document.readyState === 'complete' && document.querySelector('#model option') !== null")

    def resize(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def scheme(self, name: str) -> None:
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are waited for."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, expression: str, seconds: float = SECONDS) -> Any:
        """The first true value of an expression."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            done = self.call("Runtime.evaluate", expression=f"Boolean({expression})", returnByValue=True)
            if done["result"].get("value"):
                return self.run(expression)
            time.sleep(0.03)
        raise AssertionError(f"never true: {expression}; {self.problems}; {self.run('document.body.innerText')}")

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def key(self, key: str, modifiers: int = 0) -> None:
        """Press a key; ``modifiers``: 2 Ctrl, 8 Shift."""
        codes = {"Enter": 13, "Escape": 27, "Tab": 9, "k": 75}
        common = {"key": key, "modifiers": modifiers, "windowsVirtualKeyCode": codes[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def click(self, selector: str) -> None:
        self.wait(f"document.querySelector({selector!r})")
        self.run(f"document.querySelector({selector!r}).click()")

    def choose_files(self, selector: str, paths: list[Path]) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def screenshot(self, path: Path) -> None:
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))
