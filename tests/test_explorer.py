"""The page of lib/explorer.py in a real browser, Chromium, beside PyTorch.

Playwright drives it; without one of the two these tests are skipped. What a reader does is tried
on the page of a small model, as that is ready at once; the numbers are compared on the shipped one.
"""

import base64
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
from conftest import PROJECT
from PIL import Image

from data import find_source, load_both_splits
from lib import explorer, figures, latent_grid
from lib.files import MARK, MARK_WITHIN
from lib.history import History
from models import SHIPPED, VAE, AutoEncoder, GridVAE, log_bernoulli

SHIPPED_PAGE = PROJECT / "figures/explorer.html"
BEFORE_DATA = '<script type="application/json" id="data">'
SCREENS = [(390, 844), (360, 640), (1280, 800), (1920, 1080)]  # two phones, a laptop, a wide one
BEST_LOSS = 100.0  # L_tot of the best epoch of the runs whose pages are tested
LAST_LOSS = 200.0
# The page's answer on the image that is shown, when it is finished.
FINISHED = "state.analysis?.kind === 'fine' && !state.isWaiting"
ANSWER = (
    "{...state.analysis, x: [...state.analysis.x], cells: [...state.analysis.cells], rectangles: 0}"
)


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
def digits(tiny_mnist):
    """300 training and 100 test images."""
    return load_both_splits(find_source(tiny_mnist), "cpu")


@pytest.fixture(scope="module")
def small():
    """A GridVAE a hundredth as large as the shipped one, untrained.

    Its decoder's first and last layer are scaled, so that images depend much on their codes.
    """
    torch.manual_seed(1)
    model = GridVAE((16, 16), (16, 16, 24), regions_per_side=9, readout_width=8)
    with torch.no_grad():
        model.decoder.net[0].weight *= 4
        model.decoder.net[-1].weight *= 8
    return model.eval()


def page_of(model, digits, path):
    """Write the page that a run of two epochs, the first of them the best, would write for a model.

    Gives its path, or None if there is no page for such a model.
    """
    model.eval()
    log = []
    for loss in (BEST_LOSS, LAST_LOSS):
        log.append({"test": {"L_tot": loss}, "validation": {"L_tot": loss}})
    log_likelihood = None
    if isinstance(model, GridVAE):
        log_likelihood = model.log_likelihood(digits.last_x_test, side=81)
    shown = figures.picture_data(model, digits, History(log), log_likelihood)
    page = figures.draw_explorer(shown)
    if page is None:
        return None
    path.write_bytes(page)
    return path


@pytest.fixture(scope="module")
def page_file(tmp_path_factory, small, digits):
    """The page of the small model."""
    return page_of(small, digits, tmp_path_factory.mktemp("page") / "explorer.html")


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
def shipped_page(browser, tmp_path_factory):
    """The shipped page's data in the template as it is now, its grid decoded."""
    path = tmp_path_factory.mktemp("shipped") / "explorer.html"
    data = text_of_data(SHIPPED_PAGE.read_text(encoding="utf-8"))
    template = explorer.TEMPLATE.read_text(encoding="utf-8")
    path.write_text(template.replace("@@data@@", data), encoding="utf-8")
    page = browser.new_page()
    page.goto(f"file://{path}")
    finished(page)
    yield page
    page.close()


def text_of_data(text):
    """The JSON in a page's text."""
    return text.split(BEFORE_DATA)[1].split("</script>")[0]


def ask(page, expression, given=None):
    """The value of an expression in the page, in which `given` is a value from here.

    Both go as JSON, as Playwright's own way takes seconds for long lists.
    """
    function = (
        f"(text) => {{ const given = JSON.parse(text); return JSON.stringify({expression}); }}"
    )
    return json.loads(page.evaluate(function, json.dumps(given)))


def finished(page):
    """The finished answer on the image that is shown."""
    page.wait_for_function(FINISHED, timeout=60_000)
    return ask(page, ANSWER)


def next_frame(page):
    """Let the page draw what has changed."""
    page.evaluate(
        "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )


def assert_quiet(page):
    """The page has said nothing to the console, and has asked for nothing but itself."""
    assert page.messages == []
    assert page.requests == [page.url]


# --- Numbers ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def last_images(mnist):
    """The last 1000 test images, [1000, 784] in [0, 1]."""
    return torch.from_numpy(mnist.test_images[-1000:].reshape(1000, 784) / np.float32(255))


def test_networks(open_page, page_file, small, digits):
    page = open_page(page_file)
    page.wait_for_selector("body[data-ready]")
    compare_networks(page, small, digits.last_x_test, digits.last_test_labels)


def test_networks_of_the_shipped_page(shipped_page, shipped, last_images, mnist):
    compare_networks(shipped_page, shipped, last_images, mnist.test_labels[-1000:])


@torch.no_grad()
def compare_networks(page, model, x, labels):
    """The pixels of 100 codes; the images, their labels, and the encoder's Gaussian of each."""
    codes = torch.randn(100, 2, generator=torch.Generator().manual_seed(1))
    pixels = ask(page, "decodedImages(given).map((image) => [...image])", codes.tolist())
    assert (torch.tensor(pixels) - model.decode(codes).sigmoid()).abs().max() <= 0.005

    assert np.allclose(ask(page, "testImages.map((x) => [...x])"), x, atol=1e-6)
    assert ask(page, "settings.labels") == labels.tolist()
    answers = ask(page, "testImages.map((x) => encode(model, x))")
    known_mean, known_logvar = model.encode(x)
    for name, known in (("mean", known_mean), ("logvar", known_logvar)):
        found = torch.tensor([answer[name] for answer in answers])
        near = ((found - known).abs() <= 0.005).all(1)
        assert near.float().mean() >= 0.995, name
    shown_codes = torch.tensor(ask(page, "settings.codes"))
    assert torch.allclose(shown_codes, known_mean, atol=1e-4)


def test_answers(shipped_page, shipped, last_images):
    """Bayes' rule and L_tot of Gaussians; log p(x) beside 648 x 648 nodes."""
    indices = [20, 620, 860]  # the second has a wide posterior
    known_log_likelihood = shipped.log_likelihood(last_images[indices], side=648).tolist()
    divisions = set()
    for index, log_likelihood in zip(indices, known_log_likelihood, strict=True):
        shipped_page.evaluate("(index) => requestAnalysis(testImages[index])", index)
        answer = finished(shipped_page)
        assert answer["negativeLogEvidence"] == pytest.approx(-log_likelihood, abs=0.05)
        compare_posterior(answer, shipped, last_images[[index]])
        compare_gaussians(answer, shipped, last_images[index])
        divisions |= {math.isqrt(len(part["masses"])) for part in answer["nodes"]}
    assert divisions == {4, 8}  # cells of narrow posteriors are divided more finely


def compare_posterior(answer, model, x):
    """The posterior of each cell and each finer node, beside PyTorch on the same nodes."""
    known_cells, known_fine = posterior_on_the_same_nodes(model, x, answer["nodes"])
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


def posterior_on_the_same_nodes(model, x, nodes):
    """Bayes' rule in float64, on the coarse grid and on the finer nodes in some of its cells.

    Gives the posterior of each coarse cell, [6561], and that of the finer nodes, {cell: [n]}.
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
    return (log_mass - total).exp(), fine


def compare_gaussians(answer, model, x):
    """L_tot of the encoder's Gaussian and of the best one, beside the midpoint rule.

    That of the best is between the encoder's and -log p(x), and no small change makes it lower.
    """
    encoder_mean, encoder_logvar = model.encode(x[None])
    encoder_likelihood, encoder_divergence = exact_terms(model, x, encoder_mean, encoder_logvar)
    assert answer["terms"]["likelihood"] == pytest.approx(encoder_likelihood, rel=0.005)
    assert answer["terms"]["divergence"] == pytest.approx(encoder_divergence, rel=0.005)

    mean = torch.tensor(answer["best"]["mean"])
    logvar = torch.tensor(answer["best"]["logvar"])
    likelihood, divergence = exact_terms(model, x, mean, logvar)
    loss = divergence - likelihood
    assert loss == pytest.approx(answer["bestLoss"], abs=0.1)
    assert loss <= answer["terms"]["divergence"] - answer["terms"]["likelihood"] + 0.05
    assert loss >= answer["negativeLogEvidence"] - 0.05
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        shift = 0.3 * (0.5 * logvar).exp() * torch.randn(2, generator=generator)
        widening = 0.3 * torch.randn(2, generator=generator)
        likelihood, divergence = exact_terms(model, x, mean + shift, logvar + widening)
        assert divergence - likelihood > loss - 0.02


@torch.no_grad()
def exact_terms(model, x, mean, logvar):
    """The two terms of the ELBO of a Gaussian, for one image.

    The likelihood by the midpoint rule, on 41 x 41 nodes up to five deviations away.
    """
    std = (0.5 * logvar).exp()
    offsets = torch.cartesian_prod(torch.linspace(-5, 5, 41), torch.linspace(-5, 5, 41))
    z = mean + std * offsets
    weights = torch.softmax(-0.5 * offsets.square().sum(1), 0)
    likelihood = weights @ log_bernoulli(x.expand(len(z), -1), model.decode(z))
    q = torch.distributions.Normal(mean, std)
    divergence = torch.distributions.kl_divergence(q, torch.distributions.Normal(0, 1)).sum()
    return likelihood.item(), divergence.item()


def test_functions_of_a_number(shipped_page):
    for u in (1e-4, 0.01, 0.3, 0.5, 0.77, 0.999):
        z = shipped_page.evaluate(f"ndtri({u})")
        assert z == pytest.approx(torch.special.ndtri(torch.tensor(u)).item(), abs=1e-3)
        assert shipped_page.evaluate(f"ndtr({z})") == pytest.approx(u, abs=1e-6)
    for x in (-3.0, -0.5, 0.0, 1e-3, 2.0):
        assert shipped_page.evaluate(f"gelu({x})") == pytest.approx(
            torch.nn.functional.gelu(torch.tensor(x)).item(), abs=1e-6
        )


def centre_of_mass(x):
    """In pixels, of an image [28, 28]: row and column."""
    rows, columns = np.mgrid[:28, :28]
    return np.array([(rows * x).sum(), (columns * x).sum()]) / x.sum()


def test_centring_as_in_mnist(shipped_page, digits):
    """Test images somewhere on the pad, in other sizes, come back as they were."""
    for size, top, left in ((84, 10, 190), (140, 130, 0), (224, 20, 50)):
        for x in digits.last_x_test[::20].numpy().reshape(-1, 28, 28):
            ink = np.zeros((280, 280), np.uint8)
            image = Image.fromarray((255 * x).astype(np.uint8))
            enlarged = image.resize((size, size), Image.BICUBIC)
            ink[top : top + size, left : left + size] = np.asarray(enlarged)
            centred = "[...centred(Float32Array.from(given, (value) => value / 255), 280)]"
            found = np.array(ask(shipped_page, centred, ink.ravel().tolist())).reshape(28, 28)
            assert np.abs(centre_of_mass(found) - centre_of_mass(x)).max() < 1
            assert np.corrcoef(found.ravel(), x.ravel())[0, 1] > 0.85


# --- What a reader does -----------------------------------------------------------------------


MANY_SAMPLES = "Array.from({length: 4000}, () => model.decoder.sample(standardNormal()))"
STROKE = [(80, 70), (190, 70), (150, 140), (120, 230)]  # a seven, on the pad of 280 x 280


def draw_with_mouse(page):
    box = page.locator("#pad").bounding_box()
    page.mouse.move(box["x"] + STROKE[0][0], box["y"] + STROKE[0][1])
    page.mouse.down()
    for x, y in STROKE[1:]:
        page.mouse.move(box["x"] + x, box["y"] + y, steps=5)
    page.mouse.up()
    next_frame(page)  # then the page asks for the analysis of the last line, too


def draw_with_touch(page):
    box = page.locator("#pad").bounding_box()
    session = page.context.new_cdp_session(page)
    for kind, places in (("touchStart", STROKE[:1]), ("touchMove", STROKE[1:])):
        for x, y in places:
            touch = {"x": box["x"] + x, "y": box["y"] + y}
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [touch]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    next_frame(page)


def opacity(page, canvas):
    """How much ink each pixel of a canvas has, from 0 to 1, row by row."""
    values = ask(
        page,
        "(() => { const { width, height } = element(given);"
        "const context = newCanvas(width, height).getContext('2d', { willReadFrequently: true });"
        "context.drawImage(element(given), 0, 0);"
        "const { data } = context.getImageData(0, 0, width, height);"
        "return [...data].filter((_, n) => n % 4 === 3); })()",
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


def test_a_drawn_digit(open_page, page_file, digits):
    """Drawn with a mouse and by touch; the numbers on the page; undo and erase."""
    page = open_page(page_file, has_touch=True)
    page.wait_for_selector("body[data-ready]")
    page.click("#tab-draw")
    page.locator("#pad").scroll_into_view_if_needed()
    draw_with_mouse(page)
    drawn = finished(page)["x"]
    for canvas in ("pad", "shown-image", "close-up", "best-image"):
        assert inked(page, canvas)
    shown = page.inner_text("#analysis table")
    numbers = [
        float(word.replace("\u2212", "-")) for word in re.findall(r"[\u2212\d]\d*\.\d+", shown)
    ]
    mean, minus_likelihood, divergence, encoder, best, evidence = numbers
    assert encoder == pytest.approx(divergence + minus_likelihood, abs=0.02)
    assert mean == BEST_LOSS
    assert page.inner_text("#pen") == ""
    assert encoder >= best - 0.05
    assert best >= evidence - 0.05
    gaps = re.findall(r"\d+\.\d\d", page.inner_text("#gap"))
    assert [float(gap) for gap in gaps[:3]] == pytest.approx(
        [encoder - evidence, encoder - best, best - evidence], abs=0.02
    )
    page.click("#undo")
    page.wait_for_function("!state.analysis")
    assert not inked(page, "pad")
    draw_with_touch(page)
    assert np.allclose(finished(page)["x"], drawn, atol=0.1)
    page.click("#erase")
    page.wait_for_function("!state.analysis")
    for canvas in ("pad", "shown-image", "best-image"):
        assert not inked(page, canvas)
    page.click("#take")
    x = finished(page)["x"]
    assert inked(page, "pad")
    images = digits.last_x_test
    assert (images - torch.tensor(x)).abs().amax(1).min() < 1e-6  # as it is in the set
    assert_quiet(page)


def test_a_drawn_seven(shipped_page):
    """Its code is nearest to that of a test image of a seven."""
    shipped_page.click("#tab-draw")
    draw_with_mouse(shipped_page)
    nearest = nearest_image(shipped_page, finished(shipped_page)["encoder"]["mean"])
    assert shipped_page.evaluate("settings.labels")[nearest] == 7


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
    assert_quiet(page)


def test_pointer_decodes_what_is_under_it(open_page, page_file, small):
    page = open_page(page_file)
    page.wait_for_selector("body[data-ready]")
    box = page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.6 * box["height"])
    next_frame(page)
    marker = page.evaluate("state.marker")
    shown = opacity(page, "decoded")
    with torch.no_grad():
        known = small.decode(torch.tensor([marker])).sigmoid()[0]
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


def test_worst_images_first(open_page, page_file, small, digits):
    """The order is that of L_tot, by the midpoint rule, above -log p(x). The page shows it."""
    page = open_page(page_file)
    page.wait_for_selector("body[data-ready]")
    page.set_viewport_size({"width": 1280, "height": 800})
    worst_first = page.evaluate("settings.worst_first")
    assert sorted(worst_first) == list(range(100))
    with torch.no_grad():
        gaussians = zip(*small.encode(digits.last_x_test), strict=True)
    known_gaps = small.log_likelihood(digits.last_x_test)
    for index, (x, gaussian) in enumerate(zip(digits.last_x_test, gaussians, strict=True)):
        likelihood, divergence = exact_terms(small, x, *gaussian)
        known_gaps[index] += divergence - likelihood
    # Neighbours may be exchanged, as the page's order comes from 16 samples for each image.
    known_rank = known_gaps.argsort(descending=True).argsort()
    both = torch.stack([known_rank[worst_first].double(), torch.arange(100).double()])
    assert torch.corrcoef(both)[0, 1] > 0.98
    gaps = []
    for rank in (0, 10, 25, 50, 75, 99):
        page.evaluate(f"showTestImage({rank})")
        answer = finished(page)
        terms = answer["terms"]
        loss = terms["divergence"] - terms["likelihood"]
        gaps.append(loss - answer["negativeLogEvidence"])
        label = digits.last_test_labels[worst_first[rank]]
        assert f" {label}. Rank {rank + 1} of 100;" in page.inner_text("#which")
    assert gaps == sorted(gaps, reverse=True)
    page.click("#next")  # there is none
    assert page.evaluate("state.rank") == 99
    page.fill("#rank", "1")
    page.press("#rank", "Enter")
    page.click("#previous")
    page.click("#next")
    assert "Rank 2 of 100;" in page.inner_text("#which")


def test_walk_and_samples(open_page, page_file, small):
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
        known = small.decode(codes).sigmoid().view(11, 28, 28).permute(1, 0, 2).reshape(28, 308)
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
    many = np.array(ask(page, MANY_SAMPLES))
    assert np.allclose(many.mean(0), 0, atol=0.08)
    assert np.allclose(np.cov(many.T), np.eye(2), atol=0.1)
    assert_quiet(page)


# --- Any screen, no network -------------------------------------------------------------------


@pytest.fixture
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


def test_nothing_is_asked_for(open_page, server):
    """Neither a request nor a message, also while everything is used; over http, too."""
    page = open_page(f"{server.address}/explorer.html")
    page.wait_for_selector("body[data-ready]")
    finished(page)
    for tab in ("draw", "walk", "sample", "test"):
        page.click(f"#tab-{tab}")
        next_frame(page)
    for look in ("images", "names", "marks"):
        page.check(f"input[value={look}]")
        next_frame(page)
    page.click("#next")
    page.click("summary")
    finished(page)
    assert_quiet(page)
    assert server.asked == ["/explorer.html"]


def test_widths_and_schemes(open_page, page_file):
    """Nothing is wider than the screen, words have contrast, and what is used has a name."""
    page = open_page(page_file, viewport={"width": 390, "height": 844})
    page.wait_for_selector("body[data-ready]")
    for width, height in SCREENS:
        page.set_viewport_size({"width": width, "height": height})
        for tab in ("test", "draw", "walk", "sample"):
            page.click(f"#tab-{tab}")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            for canvas in page.query_selector_all("canvas"):
                if canvas.is_visible():
                    box = canvas.bounding_box()
                    assert box["x"] >= 0
                    assert box["x"] + box["width"] <= width
    page_colours = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        pairs = page.evaluate(
            "[['--text', '--page'], ['--faint', '--page'], ['--text', '--card'], "
            "['--link', '--page']].map((names) => names.map((name) => "
            "getComputedStyle(document.documentElement).getPropertyValue(name).trim()))"
        )
        for foreground, background in pairs:
            assert contrast(foreground, background) >= 4.5  # WCAG 2.2, criterion 1.4.3
        page_colours.add(pairs[0][1])
    assert len(page_colours) == 2
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


def damaged(text, **changed):
    """A page's text with other values in its JSON."""
    data = text_of_data(text)
    return text.replace(data, json.dumps({**json.loads(data), **changed}))


def test_a_page_that_cannot_work_says_so(open_page, page_file, tmp_path):
    whole = page_file.read_text(encoding="utf-8")
    weights = json.loads(text_of_data(whole))["weights"]
    infinite = "AHwA" + weights[4:]  # the first float16 is 0x7C00
    pages = {
        "not finite": (damaged(whole, weights=infinite), "no finite numbers"),
        "fewer weights": (damaged(whole, weights=weights[:-8]), "all weights"),
        "no JSON": (whole.replace('"kind"', "kind", 1), "damaged"),
    }
    data_start = whole.index(BEFORE_DATA)
    for size in (10_000, data_start + 10_000, len(whole) - 40_000, len(whole) - 100):
        pages[f"cut after {size} characters"] = (whole[:size], "cut short")
    path = tmp_path / "page.html"
    page = open_page(page_file)
    for kind, (text, sentence) in pages.items():
        path.write_text(text, encoding="utf-8")
        page.goto(f"file://{path}")
        page.wait_for_selector("#problem")
        page.wait_for_timeout(200)
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
    model = AutoEncoder(2, (16, 16), (16, 16))
    with torch.no_grad():
        model.encoder[-1].weight *= 20  # a wider map
    model.fit_sampler(digits.x_train)
    page = open_page(page_of(model, digits, tmp_path / "page.html"))
    answer = finished(page)
    codes = ask(page, "testImages.map((x) => encode(model, x).mean)")
    with torch.no_grad():
        known = model.codes(digits.last_x_test)
        index = page.evaluate("settings.worst_first[0]")
        x = digits.last_x_test[[index]]
        cross_entropy = -log_bernoulli(x, model.decode(model.codes(x))).item()
    assert np.allclose(codes, known, atol=0.005)
    loss = answer["terms"]["divergence"] - answer["terms"]["likelihood"]
    assert loss == pytest.approx(cross_entropy, rel=0.005)
    assert page.is_visible("text=cross-entropy, best code")
    assert not page.is_visible("text=L_divergence, encoder")
    page.click("#tab-sample")
    many = np.array(ask(page, MANY_SAMPLES))
    factor = model.decoder.sample_factor.numpy()
    spread = np.sqrt(np.diag(factor @ factor.T))
    assert np.allclose(many.mean(0), model.decoder.sample_mean, atol=0.1 * spread.max())
    assert np.allclose(many.std(0), spread, rtol=0.1)
    assert_quiet(page)


def test_nothing_becomes_markup(open_page, tmp_path):
    """Not even the words that end a script."""
    text = "</script><img src=x onerror=alert(1)><!--<script>"
    contents = {"kind": "AutoEncoder", "about": text, "images_name": text, "reach": 1.0,
                "stretch": 4, "frequencies": [0.5, 1.0], "worst_first": [0],
                "mean_loss": 1.0}  # fmt: skip
    model = AutoEncoder(2, (8,), (8,))
    tensors = {name: t.numpy() for name, t in model.state_dict().items()}
    images, codes = np.zeros((1, 784)), np.zeros((1, 2))
    page_bytes = explorer.page_bytes(tensors, images, codes, [7], contents)
    assert text.encode() not in page_bytes
    (tmp_path / "page.html").write_bytes(page_bytes)
    page = open_page(tmp_path / "page.html")
    page.wait_for_selector("body[data-ready]")
    assert page.inner_text("#about") == text
    assert page.query_selector("img") is None


def test_the_file(page_file, small, digits, tmp_path):
    """The same model gives the same bytes, and all its weights are in them."""
    data = page_file.read_bytes()
    assert data == page_of(small, digits, tmp_path / "page.html").read_bytes()
    assert MARK.encode() in data[:MARK_WITHIN]
    weights = np.concatenate([tensor.numpy().ravel() for tensor in small.state_dict().values()])
    found = np.frombuffer(
        base64.b64decode(json.loads(text_of_data(data.decode()))["weights"]), "<f2"
    )
    assert np.allclose(found, weights, rtol=1e-3, atol=1e-6)


def test_what_it_says_of_the_run(small, digits, tmp_path):
    """Of 1100 test images the last 1000, in the order of their loss; L_tot of the best epoch."""
    x_test = torch.cat([digits.x_train[:100], digits.x_test.repeat(10, 1)])
    test_labels = np.concatenate([digits.train_labels[:100], np.tile(digits.test_labels, 10)])
    digits = digits._replace(x_test=x_test, test_labels=test_labels)
    page = page_of(small, digits, tmp_path / "page.html")
    data = json.loads(text_of_data(page.read_text()))
    assert data["images_name"] == "the last 1,000 of 1,100 test images"
    assert data["labels"] == test_labels[100:].tolist()
    assert len(data["codes"]) == 1000
    assert np.abs(data["codes"]).max() < data["reach"]
    assert sorted(data["worst_first"]) == list(range(1000))
    with Image.open(io.BytesIO(base64.b64decode(data["images"]))) as sheet:
        first = np.asarray(sheet)[:28, :28].ravel() / 255
    assert np.allclose(first, x_test[100])
    assert data["about"].endswith("trained on 300 images for 1 epoch.")
    assert data["mean_loss"] == BEST_LOSS


def test_no_page_without_two_latents(digits, tmp_path):
    for latent_dim in (1, 3):
        model = VAE(latent_dim, (8,), (8,))
        assert page_of(model, digits, tmp_path / "page.html") is None


def test_sheet_of_images():
    images = np.random.default_rng(0).integers(0, 256, (41, 784)) / 255
    with Image.open(io.BytesIO(explorer.sheet_png(images))) as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (2 * 28, 40 * 28)
    assert np.array_equal(pixels[28:, :28].ravel(), (images[40] * 255).round())
    assert np.array_equal(pixels[:28, 28:56].ravel(), (images[1] * 255).round())


def test_the_shipped_page_is_up_to_date(shipped):
    """It is of the template as it is now, the shipped model and its run, and at most 8 MB large."""
    text = SHIPPED_PAGE.read_text(encoding="utf-8")
    before, after = explorer.TEMPLATE.read_text(encoding="utf-8").split("@@data@@")
    assert text.startswith(before)
    assert text.endswith(after)
    assert len(text.encode()) <= 8e6
    data = json.loads(text_of_data(text))
    weights = {name: tensor.numpy() for name, tensor in shipped.state_dict().items()}
    assert data["weights"] == explorer.base64_of(explorer.float16_bytes(weights))
    run = json.loads(SHIPPED.with_suffix(".json").read_text())
    assert data["mean_loss"] == run["log"][run["epochs"] - 1]["test"]["L_tot"]
