"""How fast figures/explorer.html is in Chromium, and a picture of it.

    python benchmarks/explorer.py    # half a minute; writes explorer.json and figures/explorer.png

Needs `pip install playwright` and Chromium, as the system's packages have it.
"""

import math
import shutil
import statistics
import time

from common import PROJECT, write_json
from playwright.sync_api import sync_playwright

PAGE = PROJECT / "figures/explorer.html"
PICTURE = PROJECT / "figures/explorer.png"
STROKES = 10
DECODES = 200
PAD_SIDE = 280  # pixels, as strokes are given
FINISHED = "state.analysis?.kind === 'fine' && !state.isWaiting"

# Notes the longest time between two frames on the screen, and when answers to a stroke come.
WATCH = """() => {
  window.longestFrame = 0;
  let last = performance.now();
  const frame = (now) => {
    window.longestFrame = Math.max(window.longestFrame, now - last);
    last = now;
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
  window.answers = {};
  worker.addEventListener("message", ({ data }) => {
    window.answers[data.kind] = performance.now();
  });
}"""
TIME_DECODES = """(count) => Array.from({ length: count }, (_, n) => {
  const started = performance.now();
  decodedImages([[Math.sin(n), Math.cos(n)]]);
  return performance.now() - started;
})"""


def three(turn):
    """The points of a stroke on the pad, like a 3; `turn`, in radians, slants it."""
    points = []
    for middle, radius, first, last in ((95, 48, 160, -80), (185, 52, 80, -160)):
        for angle in range(first, last, -12):
            right = 130 + 1.1 * radius * math.cos(math.radians(angle))
            down = middle - radius * math.sin(math.radians(angle))
            points.append((right - turn * (down - 140), down))
    return points


def draw(page, points):
    """Draw a stroke with the mouse."""
    box = page.locator("#pad").bounding_box()
    scale = box["width"] / PAD_SIDE
    places = []
    for right, down in points:
        x = box["x"] + scale * right
        y = box["y"] + scale * down
        places.append((x, y))
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=2)
    page.mouse.up()


def main():
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 1100}, color_scheme="light")
        started = time.perf_counter()
        page.goto(f"file://{PAGE}")
        page.wait_for_selector("body[data-ready]")
        page.evaluate("() => new Promise(requestAnimationFrame)")
        first_picture = time.perf_counter() - started
        page.wait_for_function(FINISHED)
        whole_grid = time.perf_counter() - started
        decodes = page.evaluate(TIME_DECODES, DECODES)

        page.evaluate(WATCH)
        page.click("#tab-draw")
        first_shades = []
        finished = []
        for stroke in range(STROKES):
            page.click("#erase")
            page.wait_for_function("!state.analysis")
            draw(page, three(turn=0.05 * stroke))
            lifted = page.evaluate("performance.now()")
            page.evaluate("() => new Promise(requestAnimationFrame)")
            page.wait_for_function(FINISHED)
            answers = page.evaluate("answers")
            # An answer to the last bit of the stroke may be there before the pen is lifted.
            first_shades.append(max(0, answers["coarse"] - lifted) / 1000)
            finished.append((answers["fine"] - lifted) / 1000)
        longest_frame = page.evaluate("longestFrame")

        page.check("input[value=images]")
        page.mouse.move(0, 0)
        page.wait_for_timeout(300)
        page.screenshot(path=PICTURE)
        browser.close()
    write_json(
        "explorer",
        {
            "megabytes": round(PAGE.stat().st_size / 1e6, 2),
            "seconds_to_first_picture": round(first_picture, 2),
            "seconds_to_whole_grid": round(whole_grid, 2),
            "milliseconds_a_decode": round(statistics.median(decodes), 2),
            "strokes": STROKES,
            "longest_seconds_to_first_shade": round(max(first_shades), 2),
            "longest_seconds_to_finished_posterior": round(max(finished), 2),
            "longest_milliseconds_between_frames": round(longest_frame),
        },
    )


if __name__ == "__main__":
    main()
