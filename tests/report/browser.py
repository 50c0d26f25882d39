"""A headless Chromium over the DevTools protocol, spoken over a pipe: no driver and no package are needed."""

import json
import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]


class Browser:
    """A Chromium that is spoken to over two pipes, one JSON message after the other."""

    def __init__(self, program: str, profile: str) -> None:
        (get, self._put), (self._get, put) = os.pipe(), os.pipe()

        def wire() -> None:  # the browser reads from descriptor 3 and writes to 4
            high_get, high_put = os.dup2(get, 63), os.dup2(put, 64)
            os.dup2(high_get, 3)
            os.dup2(high_put, 4)

        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(command, preexec_fn=wire, pass_fds=(3, 4), stderr=subprocess.DEVNULL)  # noqa: PLW1509
        os.close(get)
        os.close(put)
        self._count, self._rest = 0, b""
        self.events: list[dict[str, Any]] = []
        self.session = ""

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._put, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])

    def wait(self, event: str) -> None:
        """Return once the event has come, now or since the last `forget`."""
        while all(seen.get("method") != event for seen in self.events):
            self._read()

    def forget(self) -> None:
        """Drop the events that came so far."""
        self.events = []

    def close(self) -> None:
        self.session = ""
        self.call("Browser.close")
        self._process.wait(timeout=20)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._get], [], [], 60)
            chunk = os.read(self._get, 1 << 20) if ready else b""
            if not chunk:
                raise RuntimeError("the browser ended, or said nothing for a minute")
            self._rest += chunk
        text, self._rest = self._rest.split(b"\0", 1)
        message = dict(json.loads(text))
        if "method" in message:
            self.events.append(message)
        return message


def installed() -> str | None:
    """The path of a browser, None where there is none."""
    return next((p for p in map(shutil.which, ("chromium", "google-chrome", "chromium-browser")) if p), None)


def open_browser(profile: str) -> Browser:
    program = installed()
    if program is None:
        raise FileNotFoundError("no chromium or google-chrome on the PATH")
    browser = Browser(program, profile)
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    browser.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    browser.call("Page.enable")
    browser.call("Network.enable")
    return browser


def show(browser: Browser, page: Path, width: int, scheme: str) -> list[str]:
    """Open a page in a viewport of this width; return the addresses that it asked for."""
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.forget()
    browser.call("Page.navigate", url=page.resolve().as_uri())
    browser.wait("Page.loadEventFired")
    sent = [seen for seen in browser.events if seen["method"] == "Network.requestWillBeSent"]
    return [str(seen["params"]["request"]["url"]) for seen in sent]


def evaluate(browser: Browser, expression: str) -> Any:
    answer = browser.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
    if "exceptionDetails" in answer:
        raise RuntimeError(str(answer["exceptionDetails"]["exception"].get("description")))
    return answer["result"].get("value")
