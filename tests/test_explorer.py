"""The page of lib/explorer.py in a real browser, Chromium, beside PyTorch.

Playwright drives it; without one of the two these tests are skipped.
"""

import functools
import http.server
import io
import json
import math
import re
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import PROJECT, call, flags
from PIL import Image

import auto_encoder
from auto_encoder import History
from data import MNIST, find_source, load_both_splits
from lib import explorer, latent_grid
from models import AutoEncoder, GridVAE, log_bernoulli

SHIPPED_PAGE = PROJECT / "figures/explorer.html"
WIDTHS = {
    "phone": (390, 844),
    "small phone": (360, 640),
    "laptop": (1280, 800),
    "wide": (1920, 1080),
}
# The page's answer on the image that is shown, when it is finished.
FINISHED = "state.analysis?.kind === 'fine' && !state.isWaiting"


# --- Pages and browser ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def digits():
    return load_both_splits(find_source(MNIST), "cpu")


def page_of(model, digits, path):
    """Write the page that a run would write for a model."""
    model.eval()
    log = [{"test": {"L_tot": 100.0}}]
    log_likelihood = None
    if isinstance(model, GridVAE):
        log_likelihood = model.log_likelihood(digits.last_x_test)
    shown = auto_encoder.picture_data(model, digits, History(log, {}, {}), 1, log_likelihood)
    path.write_bytes(auto_encoder.draw_explorer(shown))
    return path


@pytest.fixture(scope="module")
def page_file(tmp_path_factory, shipped, digits):
    """The page of the shipped model."""
    return page_of(shipped, digits, tmp_path_factory.mktemp("page") / "explorer.html")


@pytest.fixture
def open_page(browser):
    """A function that opens a page and notes what it says and asks for: `messages`, `requests`."""
    contexts = []

    def open_page(address, script=None, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.messages = []
        page.requests = []
        page.on("console", lambda message: page.messages.append(message.text))
        page.on("pageerror", lambda error: page.messages.append(str(error)))
        page.on("request", lambda request: page.requests.append(request.url))
        if script:
            page.add_init_script(script)
        page.goto(address if "://" in str(address) else f"file://{address}")
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def ready_page(browser, page_file):
    """The shipped model's page, its grid decoded. Tests only ask its functions."""
    page = browser.new_page()
    page.goto(f"file://{page_file}")
    page.wait_for_function(FINISHED, timeout=60_000)
    yield page
    page.close()


def finished(page):
    page.wait_for_function(FINISHED, timeout=60_000)
    return page.evaluate("state.analysis")


def next_frame(page):
    """Let the page draw what has changed."""
    page.evaluate(
        "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )


# --- Numbers ----------------------------------------------------------------------------------


def test_decoded_pixels(ready_page, shipped):
    codes = torch.randn(100, 2, generator=torch.Generator().manual_seed(1))
    pixels = ready_page.evaluate(
        "(codes) => decodedImages(codes).map((image) => [...image])", codes.tolist()
    )
    with torch.no_grad():
        known = shipped.decode(codes).sigmoid()
    assert (torch.tensor(pixels) - known).abs().max() <= 0.005


def test_images_and_codes(ready_page, shipped, digits):
    """The encoder's Gaussian of each of the last 1000 test images."""
    images = ready_page.evaluate("testImages.map((x) => [...x])")
    assert np.allclose(images, digits.last_x_test.numpy(), atol=1e-6)
    answers = ready_page.evaluate("testImages.map((x) => model.encoder.encode(x))")
    with torch.no_grad():
        known_mean, known_logvar = shipped.encode(digits.last_x_test)
    for name, known in (("mean", known_mean), ("logvar", known_logvar)):
        found = torch.tensor([answer[name] for answer in answers])
        near = ((found - known).abs() <= 0.005).all(1)
        assert near.float().mean() >= 0.995, name
    assert ready_page.evaluate("settings.labels") == digits.last_test_labels.tolist()
    shown_codes = torch.tensor(ready_page.evaluate("settings.codes"))
    assert torch.allclose(shown_codes, known_mean, atol=1e-4)


def test_terms_of_the_elbo(ready_page, shipped, digits):
    """Beside the mean of 1000 samples of the encoder's Gaussian."""
    x = digits.last_x_test[::25]
    terms = ready_page.evaluate(
        "testImages.filter((_, n) => n % 25 === 0)"
        ".map((x) => elbo(model.decoder, x, model.encoder.encode(x)))"
    )
    with torch.no_grad():
        mean, logvar = shipped.encode(x)
        q = torch.distributions.Normal(mean, (0.5 * logvar).exp())
        prior = torch.distributions.Normal(0, 1)
        divergence = torch.distributions.kl_divergence(q, prior).sum(1)
        torch.manual_seed(0)
        likelihood = torch.stack([log_bernoulli(x, shipped.decode(z)) for z in q.sample((1000,))])
    found = torch.tensor([term["likelihood"] for term in terms])
    assert ((found - likelihood.mean(0)).abs() <= 0.005 * likelihood.mean(0).abs()).all()
    found = torch.tensor([term["divergence"] for term in terms])
    assert torch.allclose(found, divergence, rtol=0.005)


def analysed(page, index):
    """The page's finished answer on a test image."""
    page.evaluate("(index) => requestAnalysis(testImages[index])", index)
    return finished(page)


def posterior_on_the_same_nodes(model, x, nodes):
    """Bayes' rule in float64, on the coarse grid and on the finer nodes in some of its cells.

    Gives the posterior of each coarse cell, [6561], that of the finer nodes, {cell: [n]}, and
    log p(x).
    """
    log_mass = model.make_grid().log_likelihood_grid(x)[0].double()
    fine = {}
    for part in nodes:
        division = math.isqrt(len(part["masses"]))
        inside = (torch.arange(division) + 0.5) / division
        row, column = divmod(part["cell"], 81)
        grid = latent_grid.rectangular_grid(
            model.decoder, (row + inside) / 81, (column + inside) / 81
        )
        values = grid.log_likelihood_grid(x)[0].double() - math.log(division**2)
        fine[part["cell"]] = values
        log_mass[part["cell"]] = values.logsumexp(0)
    total = log_mass.logsumexp(0)
    fine = {cell: (values - total).exp() for cell, values in fine.items()}
    return (log_mass - total).exp(), fine, (total - math.log(81**2)).item()


def test_grid_posterior(ready_page, shipped, digits):
    """Of 20 images, beside PyTorch on the same nodes; log p(x) beside 648 x 648 nodes."""
    indices = range(0, 1000, 50)
    log_likelihood = shipped.log_likelihood(digits.last_x_test[::50], side=648)
    for index, known_log_likelihood in zip(indices, log_likelihood.tolist(), strict=True):
        answer = analysed(ready_page, index)
        known_cells, known_fine, _ = posterior_on_the_same_nodes(
            shipped, digits.last_x_test[[index]], answer["nodes"]
        )
        cells = torch.tensor(answer["cells"])
        refined = [part["cell"] for part in answer["nodes"]]
        difference = (cells - known_cells).abs()
        difference[refined] = 0
        variation = difference.sum()
        found = torch.cat([torch.tensor(part["masses"]) for part in answer["nodes"]])
        known = torch.cat([known_fine[cell] for cell in refined])
        variation += (found - known).abs().sum()
        assert 0.5 * variation < 0.02
        assert cells.sum() == pytest.approx(1, abs=1e-3)
        assert known_cells[refined].sum() > 0.999  # what matters was looked at closely
        # Two nodes beside each other may be nearly equal.
        assert known[found.argmax()] > 0.97 * known.max()
        assert answer["negativeLogEvidence"] == pytest.approx(-known_log_likelihood, abs=0.05)


def exact_l_tot(model, x, mean, logvar):
    """L_tot of a Gaussian by the midpoint rule, on 41 x 41 nodes up to five deviations away."""
    offsets = torch.cartesian_prod(torch.linspace(-5, 5, 41), torch.linspace(-5, 5, 41))
    z = mean + (0.5 * logvar).exp() * offsets
    weights = torch.softmax(-0.5 * offsets.square().sum(1), 0)
    with torch.no_grad():
        likelihood = weights @ log_bernoulli(x.expand(len(z), -1), model.decode(z))
    q = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    divergence = torch.distributions.kl_divergence(q, torch.distributions.Normal(0, 1)).sum()
    return (divergence - likelihood).item()


def test_best_gaussian(ready_page, shipped, digits):
    """Its L_tot is between the encoder's and -log p(x), and no small change makes it lower."""
    generator = torch.Generator().manual_seed(0)
    for index in range(20, 1000, 140):
        answer = analysed(ready_page, index)
        x = digits.last_x_test[[index]]
        best = torch.tensor(answer["best"]["mean"]), torch.tensor(answer["best"]["logvar"])
        loss = exact_l_tot(shipped, x, *best)
        assert loss == pytest.approx(answer["bestLoss"], abs=0.1)
        encoder_terms = answer["terms"]
        assert loss <= encoder_terms["divergence"] - encoder_terms["likelihood"] + 0.05
        assert loss >= answer["negativeLogEvidence"] - 0.05
        for _ in range(20):
            shift = 0.3 * (0.5 * best[1]).exp() * torch.randn(2, generator=generator)
            widening = 0.3 * torch.randn(2, generator=generator)
            changed = exact_l_tot(shipped, x, best[0] + shift, best[1] + widening)
            assert changed > loss - 0.02


def test_normal_distribution(ready_page):
    for u in (1e-4, 0.01, 0.3, 0.5, 0.77, 0.999):
        z = ready_page.evaluate(f"ndtri({u})")
        assert z == pytest.approx(torch.special.ndtri(torch.tensor(u)).item(), abs=1e-3)
        assert ready_page.evaluate(f"ndtr({z})") == pytest.approx(u, abs=1e-6)
    for x in (-3.0, -0.5, 0.0, 1e-3, 2.0):
        assert ready_page.evaluate(f"gelu({x})") == pytest.approx(
            torch.nn.functional.gelu(torch.tensor(x)).item(), abs=1e-6
        )


def centre_of_mass(x):
    """In pixels, of an image [28, 28]: row and column."""
    rows, columns = np.mgrid[:28, :28]
    return np.array([(rows * x).sum(), (columns * x).sum()]) / x.sum()


@pytest.mark.parametrize(("size", "top", "left"), [(84, 10, 190), (140, 130, 0), (224, 20, 50)])
def test_centring_as_in_mnist(ready_page, digits, size, top, left):
    """A test image somewhere on the pad, in another size, comes back as it was."""
    for x in digits.last_x_test[:300:30].numpy().reshape(-1, 28, 28):
        ink = np.zeros((280, 280), np.float32)
        enlarged = Image.fromarray((255 * x).astype(np.uint8)).resize((size, size), Image.BICUBIC)
        ink[top : top + size, left : left + size] = np.asarray(enlarged) / 255
        found = ready_page.evaluate(
            "(ink) => [...centred(Float32Array.from(ink), 280)]", ink.ravel().tolist()
        )
        found = np.array(found).reshape(28, 28)
        assert np.abs(centre_of_mass(found) - centre_of_mass(x)).max() < 1
        assert np.corrcoef(found.ravel(), x.ravel())[0, 1] > 0.85


# --- What a reader does -----------------------------------------------------------------------


STROKE = [(80, 70), (190, 70), (150, 140), (120, 230)]  # a seven, on the pad of 280 x 280


def draw_with_mouse(page, stroke=STROKE):
    box = page.locator("#pad").bounding_box()
    page.mouse.move(box["x"] + stroke[0][0], box["y"] + stroke[0][1])
    page.mouse.down()
    for x, y in stroke[1:]:
        page.mouse.move(box["x"] + x, box["y"] + y, steps=5)
    page.mouse.up()


def draw_with_touch(page, stroke=STROKE):
    box = page.locator("#pad").bounding_box()
    session = page.context.new_cdp_session(page)
    for kind, places in (("touchStart", stroke[:1]), ("touchMove", stroke[1:])):
        for x, y in places:
            touch = {"x": box["x"] + x, "y": box["y"] + y}
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [touch]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def opacity(page, canvas):
    """How much ink each pixel of a canvas has, from 0 to 1, row by row."""
    values = page.evaluate(
        "(id) => { const { width, height } = element(id);"
        "const context = newCanvas(width, height).getContext('2d', { willReadFrequently: true });"
        "context.drawImage(element(id), 0, 0);"
        "const { data } = context.getImageData(0, 0, width, height);"
        "return [...data].filter((_, n) => n % 4 === 3); }",
        canvas,
    )
    return torch.tensor(values) / 255


def inked(page, canvas):
    """Whether something is drawn on a canvas."""
    return bool(opacity(page, canvas).any())


def nearest_image(page, code):
    """The index of the test image whose code is nearest."""
    distances = np.linalg.norm(np.array(page.evaluate("settings.codes")) - code, axis=1)
    return int(distances.argmin())


@pytest.mark.parametrize("draw", [draw_with_mouse, draw_with_touch])
def test_a_drawn_digit(open_page, page_file, digits, draw):
    """An ellipse and numbers; undo and erase; the digit is a seven."""
    page = open_page(page_file, has_touch=draw is draw_with_touch)
    page.wait_for_selector("body[data-ready]")
    page.click("#tab-draw")
    page.locator("#pad").scroll_into_view_if_needed()
    draw(page)
    answer = finished(page)
    assert inked(page, "shown-image")
    assert inked(page, "close-up")
    assert inked(page, "best-image")
    shown = page.inner_text("#analysis table")
    numbers = [
        float(word.replace("\u2212", "-")) for word in re.findall(r"[\u2212\d]\d*\.\d+", shown)
    ]
    mean, minus_likelihood, divergence, encoder, best, evidence = numbers
    assert encoder == pytest.approx(divergence + minus_likelihood, abs=0.02)
    assert mean == page.evaluate("settings.mean_loss")
    assert page.inner_text("#pen") == ""
    assert encoder >= best - 0.05
    assert best >= evidence - 0.05
    gaps = re.findall(r"\d+\.\d\d", page.inner_text("#gap"))
    assert [float(gap) for gap in gaps[:3]] == pytest.approx(
        [encoder - evidence, encoder - best, best - evidence], abs=0.02
    )
    nearest = nearest_image(page, answer["encoder"]["mean"])
    assert page.evaluate("settings.labels")[nearest] == 7
    page.click("#undo")
    page.wait_for_function("!state.analysis")
    assert not inked(page, "pad")
    draw(page)
    finished(page)
    page.click("#erase")
    page.wait_for_function("!state.analysis")
    assert not inked(page, "shown-image")
    page.click("#take")
    x = finished(page)["x"]
    assert inked(page, "pad")
    images = digits.last_x_test
    assert (images - torch.tensor(x)).abs().amax(1).min() < 1e-6  # as it is in the set
    assert page.messages == []


def test_keys_alone(open_page, page_file):
    """The marker, a test image, a drawing, a walk and samples, without a pointer."""
    page = open_page(page_file)
    page.wait_for_selector("body[data-ready]")
    page.focus("#map")
    before = page.evaluate("state.marker")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowUp")
    after = page.evaluate("state.marker")
    step = page.evaluate("settings.reach") / 200
    assert after[0] == pytest.approx(before[0] + step)
    assert after[1] == pytest.approx(before[1] + 10 * step)
    page.keyboard.press("Enter")
    assert page.evaluate("settings.worst_first[state.rank]") == nearest_image(page, after)
    page.focus("#rank")
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.type("77")
    page.keyboard.press("Enter")
    assert page.evaluate("state.rank") == 76
    page.focus("#tab-test")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("state.tab") == "draw"
    page.focus("#pad")
    page.keyboard.press(" ")
    for key in ["Shift+ArrowDown"] * 2 + ["Shift+ArrowRight"]:
        page.keyboard.press(key)
    page.keyboard.press(" ")
    page.wait_for_function("state.analysis")
    assert "Pen up" in page.inner_text("#pen")
    assert page.is_visible("#pen-mark")
    page.focus("#tab-draw")
    page.keyboard.press("ArrowRight")
    page.focus("#map")
    page.keyboard.press("Enter")
    for _ in range(3):
        page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Enter")
    page.wait_for_function("state.walk.end")
    page.focus("#walk-place")
    page.keyboard.press("End")
    assert page.evaluate("state.marker") == pytest.approx(page.evaluate("state.walk.end"))
    page.focus("#tab-walk")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("state.samples.length") == 20
    page.focus("#sheet")
    for key in ("ArrowRight", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    assert page.evaluate("state.marker") == page.evaluate(
        "keepMarker(state.samples[6]), state.marker"
    )
    assert page.messages == []


def test_pointer_decodes_what_is_under_it(open_page, page_file, shipped):
    page = open_page(page_file)
    page.wait_for_selector("body[data-ready]")
    box = page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.6 * box["height"])
    next_frame(page)
    marker = page.evaluate("state.marker")
    shown = opacity(page, "decoded")
    with torch.no_grad():
        known = shipped.decode(torch.tensor([marker])).sigmoid()[0]
    assert (shown - known).abs().max() < 0.01
    page.mouse.move(0, 0)  # the marker goes back to where it was left
    next_frame(page)
    assert page.evaluate("state.marker") == page.evaluate("state.kept") != marker
    page.mouse.click(box["x"] + 0.4 * box["width"], box["y"] + 0.6 * box["height"])
    kept = page.evaluate("state.kept")
    page.mouse.move(0, 0)
    next_frame(page)
    assert page.evaluate("state.marker") == kept
    marker = kept
    words = page.inner_text("#place").replace("\u2212", "-")
    assert [float(word) for word in re.findall(r"-?\d\.\d{3}", words)] == pytest.approx(
        marker, abs=0.0006
    )


def test_worst_images_first(open_page, page_file, digits):
    page = open_page(page_file)
    page.wait_for_selector("body[data-ready]")
    page.set_viewport_size({"width": 1280, "height": 800})
    assert sorted(page.evaluate("settings.worst_first")) == list(range(1000))
    gaps = []
    for rank in (0, 30, 100, 300, 600, 999):
        page.evaluate(f"showTestImage({rank})")
        answer = finished(page)
        terms = answer["terms"]
        loss = terms["divergence"] - terms["likelihood"]
        gaps.append(loss - answer["negativeLogEvidence"])
        label = digits.last_test_labels[page.evaluate(f"settings.worst_first[{rank}]")]
        assert f" {label}. Rank {rank + 1} of 1000" in page.inner_text("#which")
    assert gaps == sorted(gaps, reverse=True)
    page.click("#next")  # there is none
    assert page.evaluate("state.rank") == 999
    page.fill("#rank", "1")
    page.press("#rank", "Enter")
    page.click("#previous")
    page.click("#next")
    assert "Rank 2 of 1000" in page.inner_text("#which")


def test_walk_and_samples(open_page, page_file, shipped):
    page = open_page(page_file, reduced_motion="reduce")
    page.wait_for_selector("body[data-ready]")
    page.click("#tab-walk")
    assert page.is_disabled("#play")
    box = page.locator("#map").bounding_box()
    for part in (0.3, 0.7):
        page.mouse.click(box["x"] + part * box["width"], box["y"] + part * box["height"])
    strip = opacity(page, "strip").view(28, 308)
    start, end = (torch.tensor(page.evaluate(f"state.walk.{name}")) for name in ("start", "end"))
    codes = start + torch.linspace(0, 1, 11)[:, None] * (end - start)
    with torch.no_grad():
        known = shipped.decode(codes).sigmoid().view(11, 28, 28).permute(1, 0, 2).reshape(28, 308)
    assert (strip - known).abs().max() < 0.01
    assert page.evaluate("state.marker") == page.evaluate("state.walk.end")
    page.click("#play")
    page.wait_for_function("Number(element('walk-place').value) < 1")
    page.wait_for_function("Number(element('walk-place').value) > 0")
    # Less motion is wanted, so it goes in steps.
    assert (10 * page.evaluate("Number(element('walk-place').value)")) % 1 == pytest.approx(0)
    page.click("#play")
    box = page.locator("#strip").bounding_box()
    page.mouse.click(box["x"] + 0.5 * box["width"], box["y"] + 5)
    middle = (start + end) / 2
    assert page.evaluate("state.marker") == pytest.approx(middle.tolist())

    page.click("#tab-sample")
    first = page.evaluate("state.samples")
    page.click("#sample-again")
    second = page.evaluate("state.samples")
    assert len(first) == len(second) == 20
    assert first != second
    assert inked(page, "sheet")
    many = np.array(
        page.evaluate("Array.from({length: 4000}, () => model.decoder.sample(standardNormal()))")
    )
    assert np.allclose(many.mean(0), 0, atol=0.08)
    assert np.allclose(np.cov(many.T), np.eye(2), atol=0.1)
    assert page.messages == []


# --- Any screen, no network -------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(page_file):
    """The page over http, as a course's site would show it; the addresses that were asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=page_file.parent)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield SimpleNamespace(address=f"http://127.0.0.1:{server.server_port}", asked=asked)
    server.shutdown()


@pytest.mark.parametrize("where", ["file", "http"])
def test_nothing_is_asked_for(open_page, page_file, server, where):
    """Neither a request nor a message, also while everything is used."""
    address = f"file://{page_file}" if where == "file" else f"{server.address}/explorer.html"
    page = open_page(address)
    page.wait_for_selector("body[data-ready]")
    finished(page)
    for tab in ("draw", "walk", "sample", "test"):
        page.click(f"#tab-{tab}")
        page.wait_for_timeout(50)
    for look in ("images", "names", "marks"):
        page.check(f"input[value={look}]")
    page.click("#next")
    page.click("summary")
    finished(page)
    assert page.messages == []
    assert page.requests == [address]
    if where == "http":
        assert server.asked == ["/explorer.html"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_widths_and_schemes(open_page, page_file, width, scheme):
    """Nothing is wider than the screen, words have contrast, and what is used has a name."""
    size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
    page = open_page(page_file, viewport=size, color_scheme=scheme)
    page.wait_for_selector("body[data-ready]")
    for tab in ("test", "draw", "walk", "sample"):
        page.click(f"#tab-{tab}")
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        for canvas in page.query_selector_all("canvas"):
            if canvas.is_visible():
                box = canvas.bounding_box()
                assert box["x"] >= 0
                assert box["x"] + box["width"] <= size["width"]
    pairs = page.evaluate(
        "[['--text', '--page'], ['--faint', '--page'], ['--text', '--card'], ['--link', '--page']]"
        ".map((names) => names.map((name) => getComputedStyle(document.documentElement)"
        ".getPropertyValue(name).trim()))"
    )
    for foreground, background in pairs:
        assert contrast(foreground, background) >= 4.5  # WCAG 2.2, criterion 1.4.3
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, canvas, input')].filter((part) =>"
        "!(part.getAttribute('aria-label') || part.textContent.trim() || part.labels?.length))"
        ".map((part) => part.id)"
    )
    assert nameless == []


def contrast(first, second):
    """Of two colours #rrggbb (WCAG 2.2, "contrast ratio")."""
    luminances = []
    for colour in (first, second):
        channels = np.array([int(colour[n : n + 2], 16) for n in (1, 3, 5)]) / 255
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        luminances.append(linear @ [0.2126, 0.7152, 0.0722])
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


# --- Pages that cannot work -------------------------------------------------------------------


def damaged(data, **changed):
    """A page's bytes with other settings in its data."""
    text = data.decode()
    before, rest = text.split('<script type="application/json" id="data">')
    contents, after = rest.split("</script>", 1)
    settings = {**json.loads(contents), **changed}
    return (
        f'{before}<script type="application/json" id="data">{json.dumps(settings)}</script>{after}'
    )


def test_a_page_that_cannot_work_says_so(open_page, page_file, tmp_path):
    whole = page_file.read_bytes()
    path = tmp_path / "page.html"
    data = json.loads(whole.decode().split('id="data">')[1].split("</script>")[0])
    infinite = "AHwA" + data["weights"][4:]  # the first float16 is 0x7C00
    pages = {
        "not finite": (damaged(whole, weights=infinite), "no finite numbers"),
        "fewer weights": (damaged(whole, weights=data["weights"][:-8]), "all weights"),
        "no JSON": (whole.decode().replace('"kind"', "kind", 1), "damaged"),
    }
    for size in (10_000, 100_000, len(whole) // 2, len(whole) - 40_000, len(whole) - 100):
        pages[f"cut after {size} bytes"] = (whole[:size].decode(), "cut short")
    for kind, (text, sentence) in pages.items():
        path.write_text(text, encoding="utf-8")
        page = open_page(path)
        page.wait_for_selector("#problem")
        page.wait_for_timeout(300)
        assert page.is_visible("#problem"), kind
        assert sentence in page.inner_text("#problem"), kind
        assert not page.is_visible("#page"), kind


UNFIT = {  # what a browser lacks: a script that takes it away, and a word of the page's sentence
    "canvas": ("HTMLCanvasElement.prototype.getContext = () => null;", "canvas"),
    "workers": ("delete window.Worker;", "workers"),
    "true pixels": (
        "const read = CanvasRenderingContext2D.prototype.getImageData;"
        "CanvasRenderingContext2D.prototype.getImageData = function (...box) {"
        "  const picture = read.apply(this, box);"
        "  return { data: picture.data.map((value, n) => (97 * n) % 256) }; };",
        "fingerprinting",
    ),
    "scripts": (None, ""),
}


def test_a_worker_that_fails_is_no_secret(open_page, page_file):
    page = open_page(page_file)
    page.wait_for_selector("body[data-ready]")
    page.evaluate("worker.postMessage({ id: 1, x: null })")
    page.wait_for_function("element('problem').textContent.includes('has stopped')")
    assert page.is_visible("#problem")


@pytest.mark.parametrize("missing", UNFIT)
def test_a_browser_that_cannot_show_it(open_page, page_file, missing):
    script, word = UNFIT[missing]
    if script:
        page = open_page(page_file, script=script)
        page.wait_for_function(f"element('problem').textContent.includes('{word}')")
    else:
        page = open_page(page_file, java_script_enabled=False)
        assert "scripts are switched off" in page.inner_text("#problem")
    assert page.is_visible("#problem")
    assert not page.is_visible("#page")


# --- Other models, and the file itself --------------------------------------------------------


def test_plain_auto_encoder(open_page, digits, tmp_path):
    """It has codes and a decoder, but no Gaussian and no prior."""
    torch.manual_seed(0)
    model = AutoEncoder(2)
    with torch.no_grad():
        model.encoder[-1].weight *= 20  # a wider map
    model.fit_sampler(digits.x_train[:1000])
    page = open_page(page_of(model, digits, tmp_path / "page.html"))
    answer = finished(page)
    codes = page.evaluate("testImages.slice(0, 100).map((x) => model.encoder.encode(x).mean)")
    with torch.no_grad():
        known = model.codes(digits.last_x_test[:100])
        index = page.evaluate("settings.worst_first[0]")
        x = digits.last_x_test[[index]]
        cross_entropy = -log_bernoulli(x, model.decode(model.codes(x))).item()
    assert np.allclose(codes, known, atol=0.005)
    loss = answer["terms"]["divergence"] - answer["terms"]["likelihood"]
    assert loss == pytest.approx(cross_entropy, rel=0.005)
    assert page.is_visible("text=cross-entropy, best code")
    assert not page.is_visible("text=L_divergence, encoder")
    page.click("#tab-sample")
    many = np.array(
        page.evaluate("Array.from({length: 4000}, () => model.decoder.sample(standardNormal()))")
    )
    factor = model.decoder.sample_factor.numpy()
    spread = np.sqrt(np.diag(factor @ factor.T))
    assert np.allclose(many.mean(0), model.decoder.sample_mean, atol=0.1 * spread.max())
    assert np.allclose(many.std(0), spread, rtol=0.1)
    assert page.messages == []


def test_nothing_becomes_markup(open_page, page_file, tmp_path):
    """Not even the words that end a script."""
    text = "</script><img src=x onerror=alert(1)><!--<script>"
    contents = {"kind": "AutoEncoder", "about": text, "images_name": text, "reach": 1.0,
                "stretch": 4, "frequencies": [0.5, 1.0], "worst_first": [0],
                "mean_loss": 1.0}  # fmt: skip
    torch.manual_seed(0)
    tensors = {name: t.numpy() for name, t in AutoEncoder(2).state_dict().items()}
    images, codes = np.zeros((1, 784)), np.zeros((1, 2))
    page_bytes = explorer.page_bytes(tensors, images, codes, [7], contents)
    assert text.encode() not in page_bytes
    (tmp_path / "page.html").write_bytes(page_bytes)
    page = open_page(tmp_path / "page.html")
    page.wait_for_selector("body[data-ready]")
    assert page.inner_text("#about") == text
    assert page.query_selector("img") is None


def test_the_file(page_file, shipped, digits, tmp_path):
    """The same model gives the same bytes, at most 8 MB of them, and all weights are in it."""
    data = page_file.read_bytes()
    assert data == page_of(shipped, digits, tmp_path / "page.html").read_bytes()
    assert len(data) <= 8e6
    assert explorer.is_own_page(page_file)
    state = shipped.state_dict()
    weights = np.concatenate([tensor.numpy().ravel() for tensor in state.values()])
    found = np.frombuffer(explorer.float16_bytes({k: t.numpy() for k, t in state.items()}), "<f2")
    assert np.allclose(found, weights, rtol=1e-3, atol=1e-6)


def test_sheet_of_images():
    images = np.random.default_rng(0).integers(0, 256, (41, 784)) / 255
    with Image.open(io.BytesIO(explorer.sheet_png(images))) as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (2 * 28, 40 * 28)
    assert np.array_equal(pixels[28:, :28].ravel(), (images[40] * 255).round())
    assert np.array_equal(pixels[:28, 28:56].ravel(), (images[1] * 255).round())


def test_the_shipped_page_holds_the_shipped_model(shipped):
    weights = {name: tensor.numpy() for name, tensor in shipped.state_dict().items()}
    assert explorer.base64_of(explorer.float16_bytes(weights)) in SHIPPED_PAGE.read_text()


@pytest.mark.parametrize(
    ("options", "written"),
    [({}, True), ({"model": "ae"}, True), ({"latent_dim": 3}, False), ("no figures", False)],
)
def test_which_runs_write_it(tmp_path, tiny_mnist, options, written):
    if options == "no figures":
        command = flags(tmp_path, tiny_mnist, epochs=1)
    else:
        command = flags(tmp_path, tiny_mnist, epochs=1, figures=tmp_path / "figures", **options)
    result = call(auto_encoder, *command)
    assert (result.status, result.stderr) == (0, "")
    assert ("explorer.html" in result.stdout) == written
    assert (tmp_path / "figures/explorer.html").exists() == written
