"""Use a running demo page in a real browser, as a visitor would, and take screenshots on a wide and a narrow screen.

Start `python -m avmae.demo ckpt=... classifier=...`, then, with playwright (`pip install playwright`) and a Chromium:

    python examples/try_demo.py http://127.0.0.1:7860 clip.mp4 screenshots --chromium /usr/bin/chromium
"""

import argparse
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

WIDTHS = {"wide": (1280, 1000), "narrow": (390, 844)}


def visit(browser: Browser, url: str, video: Path, size: tuple[int, int], screenshot: Path) -> None:
    """Upload a video, change the mask, listen, and take a screenshot; raises if the page misbehaves."""
    page: Page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(url)
    page.locator("input[type=file]").set_input_files(video)
    masked = page.locator(".view figcaption", has_text="masked")
    masked.wait_for(timeout=120_000)
    before = masked.inner_text()

    slider = page.locator("input[type=range]").first
    box = slider.bounding_box()
    assert box is not None
    slider.click(position={"x": 0.6 * box["width"], "y": box["height"] / 2})
    page.wait_for_function("old => !document.querySelector('.view')?.innerText.includes(old)", arg=before)
    print(f"{before} -> {masked.inner_text()}")

    for button in page.get_by_role("button", name="listen").all():
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        assert page.evaluate("[...document.querySelectorAll('.view video')].filter(v => !v.muted).length") == 1
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
    # Browsers do not start muted videos that are out of view.
    page.locator(".view video").first.scroll_into_view_if_needed()
    page.wait_for_function(
        "[...document.querySelectorAll('.view video')].every(v => v.readyState === 4 && !v.paused && v.videoWidth)"
    )
    overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert overflow <= 0, f"the page is {overflow} px too wide"
    elsewhere = [address for address in asked if not address.startswith((url, "data:", "blob:"))]
    assert not elsewhere, f"asked another server: {elsewhere}"
    page.wait_for_timeout(1500)
    page.screenshot(path=screenshot, full_page=True)
    page.close()
    print(f"wrote {screenshot}" + (f"; the console reports {wrong}" if wrong else ""))


def main() -> None:
    """Visit on both screens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("video", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--chromium", help="a browser on this machine; playwright's own by default")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox"])
        for name, size in WIDTHS.items():
            visit(browser, arguments.url, arguments.video, size, arguments.output / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
