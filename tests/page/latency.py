"""Measures in Chromium how long a new picture takes after a slider's move, on the server at an address.

    .venv-page/bin/python tests/page/latency.py http://127.0.0.1:8000

The picture is a photograph of 500 x 334 pixels (rocket). A move changes the slider's value and dispatches its event, as
a key does; the picture is there when it is drawn and the next frame begins. Moves follow each other, each after the
picture of the last one.
"""

import json
import re
import statistics
import sys

from playwright.sync_api import expect, sync_playwright

MOVES = 50
MEASURE = """async (moves) => {
  const slider = document.getElementById("ratio");
  const frame = () => new Promise(requestAnimationFrame);
  const milliseconds = [];
  for (let move = 0; move < moves; move++) {
    performance.clearMeasures();
    const start = performance.now();
    slider.value = 30 + (move * 17) % 60;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    while (!performance.getEntriesByName("move to picture").length) await frame();
    await frame();
    milliseconds.push(performance.now() - start);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  return milliseconds;
}"""


def main(url: str) -> None:
    """Prints the figures as JSON."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"{url}/#reconstruct?image=rocket")
        expect(page.locator("#loss")).to_have_text(re.compile(r"\d"))
        page.evaluate(MEASURE, 5)  # the first moves warm both sides up
        figures = sorted(page.evaluate(MEASURE, MOVES))
        browser.close()
    print(
        json.dumps(
            {
                "moves": len(figures),
                "median_ms": round(statistics.median(figures), 1),
                "p95_ms": round(figures[int(0.95 * len(figures))], 1),
                "worst_ms": round(figures[-1], 1),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
