"""Write the example report and photograph it in a headless Chromium: two widths, light and dark.

    python tools/screenshot_report.py out/

Needs a `chromium` or `google-chrome` on the PATH.
"""

import base64
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from isobit.report import write_report
from report.browser import evaluate, open_browser, show
from report.example import four


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    folder.mkdir(parents=True, exist_ok=True)
    page = write_report(four(), folder / "report.html")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = open_browser(profile)
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                show(browser, page, width, scheme)
                shot = browser.call("Page.captureScreenshot", captureBeyondViewport=True)
                path = folder / f"report-{width}-{scheme}.png"
                path.write_bytes(base64.b64decode(shot["data"]))
                print(path, "scrolls sideways" if evaluate(browser, "document.body.scrollWidth > innerWidth") else "ok")
        browser.close()


if __name__ == "__main__":
    main()
