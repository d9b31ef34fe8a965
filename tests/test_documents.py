"""The figures in the documents are those that the runs wrote: each, and no other.

Each figure is made here from the runs' JSON files and must stand in the document, in the order that
is given here; what is left of the document must not hold a decimal number.
"""

import ast
import json
import math
import re
from statistics import mean, stdev

import pytest
from conftest import PROJECT

from auto_encoder import format_elbo
from lib.figures import FIGURES
from lib.files import MARK, MARK_WITHIN


def read_json(name):
    return json.loads((PROJECT / name).read_text())


def read_run(name, kind="vae"):
    return read_json(f"benchmarks/runs/{name}/checkpoints/{kind}.json")


DEFAULT = read_json("checkpoints/vae.json")
SEEDS = [DEFAULT, *(read_run(f"seed{seed}") for seed in (1, 2))]
FASHION = read_run("fashion")
SPEED, ANALYSIS, GENERATION, ISLANDS, QUADRATURE, EXPLORER, GAP = (
    read_json(f"benchmarks/{name}.json")
    for name in ("speed", "analysis", "generation", "islands", "quadrature", "explorer", "gap")
)
ABLATION, PEERS, RECIPE = (
    read_json(f"benchmarks/{name}.json") for name in ("ablation", "peers", "recipe")
)
OTHERS = {"latent20": read_run("latent20"), "ae32": read_run("ae32", "ae")}
GRIDS = {grid["side"]: grid["log_likelihood"] for grid in QUADRATURE}


SHORT = (  # rows of the report's table
    "default",
    "usual VAE",
    "encoder without regions",
    "variance not doubled",
    "no self-organising map",
    "AdamW for all, no Muon",
)


def tot(run, which="test"):
    return run["results"][which]["L_tot"]


def spread(figures, form=".2f"):
    return f"{mean(figures):{form}} ± {stdev(figures):{form}}"


def both(name, figure, form=".2f"):
    """A figure of the shipped run; as name_seeds of three seeds."""
    figures = [figure(run) for run in SEEDS]
    return {name: f"{figures[0]:{form}}", f"{name}_seeds": spread(figures, form)}


def ablation_rows(names):
    rows = []
    for name in names:
        runs = list(ABLATION[name].values())
        cells = [name]
        for key, factor, form in (
            ("L_tot", 1, ".2f"),
            ("laplace", 1, ".2f"),
            ("knn_accuracy", 100, ".1f"),
            ("islands", 1, ".1f"),
            ("share_below_90_percent", 100, ".1f"),
        ):
            cells.append(spread([factor * run[key] for run in runs], form))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def ablation_mean(name, key="L_tot"):
    return mean(run[key] for run in ABLATION[name].values())


def without(name):
    """How much higher the encoder's L_tot is without what the row of the ablation leaves out."""
    return ablation_mean(name) - ablation_mean("default")


def price_of_width(key):
    """What the doubled variance costs: mean and standard error over pairs of equal seeds."""
    default, as_wide = ABLATION["default"], ABLATION["variance not doubled"]
    prices = [default[seed][key] - as_wide[seed][key] for seed in default]
    return f"{mean(prices):.2f} ± {stdev(prices) / math.sqrt(len(prices)):.2f}"


def unsure(name):
    return f"{100 * ablation_mean(name, 'share_below_90_percent'):.1f}"


def best_peers():
    """A row for each peer at the best of its learning rates, from the curves of speed.py."""
    rows = []
    for name, rates in PEERS.items():
        rate, best = min(rates.items(), key=lambda item: item[1]["L_tot"])
        seconds, l_tot = SPEED["curves"][f"Pythae's {name}"][-1]
        rows.append(
            f"| Pythae's {name}, learning rate {float(rate):g}, 10 epochs | {l_tot:.2f} | "
            f"{100 * best['knn_accuracy']:.1f} | {seconds:.0f} |"
        )
    return "\n".join(rows)


def curve_rows():
    """The ends of our runs, and of those of the usual VAE with our decoder."""
    rows = []
    for name, key in (("ours", "our_epochs"), ("usual VAE with our decoder", "usual_epochs")):
        ends = SPEED["curves"][name]
        for epochs, (seconds, l_tot) in zip(SPEED[key], ends, strict=True):
            rows.append(f"| {name} | {epochs} | {l_tot:.2f} | {seconds:.1f} |")
    return "\n".join(rows)


def all_peers():
    rows = []
    for name, rates in PEERS.items():
        for rate, row in rates.items():
            rows.append(
                f"| {name} | {float(rate):g} | {row['L_tot']:.2f} | "
                f"{100 * row['knn_accuracy']:.1f} | {row['seconds']:.0f} |"
            )
    return "\n".join(rows)


def difference(test, train):
    return test["mean"] - train["mean"]


def error(test, train):
    """The standard error of the difference."""
    return math.hypot(test["standard_error"], train["standard_error"])


def gap_rows():
    """Nats of the test and of the training images, and what they differ by."""
    names = {
        "encoder": "L_tot, trained encoder",
        "laplace": "L_tot, Laplace posterior",
        "best_gaussian": "L_tot, best Gaussian",
        "minus_log_likelihood": "-log p(x), grey-scale",
        "amortisation_gap": "amortisation gap",
        "approximation_gap": "approximation gap",
    }
    rows = []
    for key, name in names.items():
        test = GAP["test"][key]["mean"]
        train = GAP["train"][key]["mean"]
        rows.append(f"| {name} | {test:.2f} | {train:.2f} | {test - train:.2f} |")
    return "\n".join(rows)


def figures():
    """All figures that the documents may show, as they show them: {name: text}."""
    results, versions = DEFAULT["results"], DEFAULT["versions"]
    gap_test, gap_train = (GAP[split]["amortisation_gap"] for split in ("test", "train"))
    even, random = GENERATION["even"], GENERATION["random"]
    curves = SPEED["curves"]
    published_seconds, published = curves["PyTorch's example, data loader"][-1]
    tensors_seconds, tensors = curves["PyTorch's example, one tensor"][-1]
    usual_seconds, usual = curves["usual VAE with our decoder"][-1]
    in_time = [end for end in curves["ours"] if end[0] <= tensors_seconds]
    same_time_seconds, same_time = in_time[-1]
    target = min(published, tensors)
    sooner = next(seconds for seconds, l_tot in curves["ours"] if l_tot <= target)
    islands = list(ISLANDS.values())
    judged = [even, *GENERATION["even_of_other_models"]]
    divergence = results["test"]["L_divergence"]
    pairs = [f"{pair} ({count})" for pair, count in ANALYSIS["most_confused"][:3]]
    named = {
        **both("tot", tot),
        **both("alone", lambda run: tot(run, "first_proposal")),
        **both("laplace", lambda run: tot(run, "laplace")),
        **both("gap", lambda run: tot(run) - tot(run, "laplace")),
        **both("likelihood", lambda run: run["results"]["test"]["L_likelihood"]),
        **both("divergence", lambda run: run["results"]["test"]["L_divergence"]),
        **both("grey", lambda run: run["results"]["log_likelihood"]),
        **both("binarized", lambda run: run["results"]["log_likelihood_binarized"]),
        **both("minus_grey", lambda run: -run["results"]["log_likelihood"]),
        **both("minus_binarized", lambda run: -run["results"]["log_likelihood_binarized"]),
        **both("knn", lambda run: 100 * run["results"]["knn_accuracy"], ".1f"),
        "python": versions["python"],
        "torch": versions["torch"].split("+")[0],
        "numpy": versions["numpy"],
        "training": f"{DEFAULT['training_seconds']:.0f}",
        "total": f"{DEFAULT['total_seconds']:.0f}",
        "confidence": f"{100 * even['mean_confidence']:.1f}",
        "confidence_seeds": f"{100 * mean(part['mean_confidence'] for part in judged):.1f}",
        "ablation": ablation_rows(ABLATION),
        "ablation_short": ablation_rows(SHORT),
        "price_of_width": price_of_width("L_tot"),
        "price_of_width_laplace": price_of_width("laplace"),
        "price_of_width_alone": price_of_width("L_tot").split()[0],
        "unsure_narrow": unsure("variance not doubled"),
        "unsure_wide": unsure("default"),
        "price_of_regression": f"{without('encoder without regions'):.1f}",
        "price_of_sines": f"{without('no sines and cosines'):.1f}",
        "price_of_muon": f"{without('AdamW for all, no Muon'):.1f}",
        "best_peers": best_peers(),
        "all_peers": all_peers(),
        "gap_rows": gap_rows(),
        "gap_images": f"{GAP['images']:,}",
        "border": f"{ANALYSIS['images_on_border']}",
        "border_laplace": f"{ANALYSIS['laplace_on_border']:.2f}",
        "border_encoder": f"{ANALYSIS['encoder_on_border']:.2f}",
        "amortisation": f"{gap_test['mean']:.2f}",
        "amortisation_error": f"{gap_test['standard_error']:.2f}",
        "amortisation_median": f"{GAP['test']['median_amortisation_gap']:.2f}",
        "worst_tenth": f"{100 * GAP['test']['share_of_worst_tenth']:.0f}",
        "approximation": f"{GAP['test']['approximation_gap']['mean']:.2f}",
        "decoder_generalisation": f"{difference(GAP['all_test'], GAP['all_train']):.2f}",
        "decoder_generalisation_error": f"{error(GAP['all_test'], GAP['all_train']):.2f}",
        "encoder_generalisation": f"{difference(gap_test, gap_train):.2f}",
        "encoder_generalisation_error": f"{error(gap_test, gap_train):.2f}",
        "recipe": f"{RECIPE['recipe']['nats']:.2f}",
        "recipe_ours": f"{RECIPE['ours']['nats']:.2f}",
        "recipe_seconds": f"{RECIPE['recipe']['seconds']:.1f}",
        "recipe_ours_seconds": f"{RECIPE['ours']['seconds']:.1f}",
        "knn_all": f"{100 * ANALYSIS['knn_accuracy']:.1f}",
        **{name: f"{tot(run):.2f}" for name, run in OTHERS.items()},
        "confidence_random": f"{100 * random['mean_confidence']:.1f}",
        "confidence_real": f"{100 * GENERATION['confidence_in_test_images']:.1f}",
        "classifier": f"{100 * GENERATION['classifier_test_accuracy']:.2f}",
        "kinds": f"{even['mean_digits']:.1f}",
        "kinds_random": f"{random['mean_digits']:.1f}",
        "kinds_shipped": f"{even['digits_of_seed_0']}",
        "confidence_shipped": f"{100 * even['confidence_of_seed_0']:.1f}",
        "least_confidence": f"{100 * even['least_confidence_of_seed_0']:.0f}",
        "least_confident": f"{even['least_confident_of_seed_0']:02d}",
        "islands": f"{mean(m['islands'] for m in islands):.1f}",
        "islands_each": ", ".join(str(m["islands"]) for m in islands),
        "share": f"{mean(m['share_of_largest'] for m in islands):.2f}",
        "share_percent": f"{100 * mean(m['share_of_largest'] for m in islands):.0f}",
        "unsure": f"{100 * mean(m['share_below_90_percent'] for m in islands):.1f}",
        "quadrature": f"{abs(GRIDS[324] - GRIDS[648]):.4f}",
        "coarse": f"{GRIDS[324] - GRIDS[81]:.2f}",
        "nodes_apart": f"{1 / ANALYSIS['median_laplace_deviation_in_nodes']:.1f}",
        "errors": f"{ANALYSIS['errors']}",
        "pairs": ", ".join(pairs),
        "slant": f"{100 * ANALYSIS['share_of_slant_explained']:.0f}",
        "region": f"{100 * ANALYSIS['right_region']:.1f}",
        "gap_right": f"{ANALYSIS['encoder_less_laplace_in_right_region']:.2f}",
        "gap_wrong": f"{ANALYSIS['encoder_less_laplace_elsewhere']:.2f}",
        "shares": f"{round(math.exp(round(divergence, 2)), -2):,.0f}",
        "published": f"{published:.2f}",
        "published_seconds": f"{published_seconds:.1f}",
        "tensors": f"{tensors:.2f}",
        "tensors_seconds": f"{tensors_seconds:.1f}",
        "usual": f"{usual:.2f}",
        "usual_seconds": f"{usual_seconds:.0f}",
        "sooner_seconds": f"{sooner:.1f}",
        "sooner_published": f"{published_seconds / sooner:.1f}",
        "sooner_tensors": f"{tensors_seconds / sooner:.1f}",
        "same_time": f"{same_time:.2f}",
        "same_time_seconds": f"{same_time_seconds:.1f}",
        "same_time_epochs": f"{SPEED['our_epochs'][len(in_time) - 1]}",
        "curve_rows": curve_rows(),
        "fashion": f"{tot(FASHION):.2f}",
        "fashion_alone": f"{tot(FASHION, 'first_proposal'):.2f}",
        "fashion_laplace": f"{tot(FASHION, 'laplace'):.2f}",
        "fashion_minus_grey": f"{-FASHION['results']['log_likelihood']:.2f}",
        "fashion_knn": f"{100 * FASHION['results']['knn_accuracy']:.1f}",
        "memory": f"{SPEED['peak_memory_MB']}",
        "page_size": f"{EXPLORER['megabytes']:.2f}",
        "page_first": f"{EXPLORER['seconds_to_first_picture']:.2f}",
        "page_grid": f"{EXPLORER['seconds_to_whole_grid']:.2f}",
        "page_decode": f"{EXPLORER['milliseconds_a_decode']:.2f}",
        "page_shade": f"{EXPLORER['longest_seconds_to_first_shade']:.2f}",
        "page_finished": f"{EXPLORER['longest_seconds_to_finished_posterior']:.2f}",
        "page_frames": f"{EXPLORER['longest_milliseconds_between_frames']}",
    }
    for epoch in (0, 1, 19):
        named[f"epoch{epoch}"] = f"epoch {epoch}: {format_elbo(DEFAULT['log'][epoch]['train'])}"
    return named


ORDER = {  # the figures in each document, by their names above, as they stand there
    "README.md": """
        torch tot tot_seeds alone alone_seeds laplace laplace_seeds amortisation
        amortisation_error knn_all knn knn_seeds confidence kinds confidence_shipped
        kinds_shipped confidence_random kinds_random tensors tensors_seconds
        same_time same_time_epochs training total price_of_width_alone share_percent
        alone
    """,
    "Report.md": """
        training total python torch numpy nodes_apart price_of_width unsure_narrow
        unsure_wide likelihood divergence tot tot_seeds alone alone_seeds laplace
        laplace_seeds minus_binarized minus_grey minus_grey_seeds knn knn_seeds
        tensors tensors_seconds best_peers usual usual_seconds same_time_epochs
        tensors_seconds same_time same_time_seconds tot knn total ablation_short
        errors pairs slant classifier islands share_percent unsure
        confidence_shipped least_confidence least_confident kinds_shipped confidence
        confidence_real kinds kinds_random gap_images amortisation
        amortisation_error approximation region gap_right gap_wrong
        decoder_generalisation decoder_generalisation_error encoder_generalisation
        encoder_generalisation_error divergence latent20
    """,
    "benchmarks/README.md": """
        torch tot tot_seeds alone alone_seeds laplace laplace_seeds gap gap_seeds
        grey grey_seeds binarized binarized_seeds knn knn_seeds gap_images gap_rows
        amortisation_error amortisation_median worst_tenth decoder_generalisation
        decoder_generalisation_error encoder_generalisation
        encoder_generalisation_error region gap_right gap_wrong border
        border_laplace border_encoder islands_each share unsure classifier
        confidence confidence_random confidence_seeds confidence_real kinds
        kinds_random confidence_shipped least_confidence ablation price_of_width
        price_of_width_laplace unsure_narrow unsure_wide price_of_sines
        price_of_muon curve_rows published published_seconds tensors tensors_seconds
        sooner_seconds sooner_published sooner_tensors same_time_epochs same_time
        same_time_seconds memory fashion fashion_alone fashion_laplace
        fashion_minus_grey fashion_knn page_size page_first page_grid page_decode
        page_shade page_finished page_frames quadrature coarse nodes_apart all_peers
        epoch0 epoch1 epoch19 tot ae32 latent20 recipe recipe_seconds recipe_ours
        recipe_ours_seconds
    """,
    "tests/README.md": "",
    "figures/README.md": "page_size",
}
CONSTANTS = {  # figures that no run here wrote: versions, settings, and what others report
    "README.md": [
        "Python 3.10",
        "5.5 GB",
        "CC BY-SA 3.0",
    ],
    "Report.md": [
        "rate 0.009 (encoder 0.0054)",
        "weight decay 0.7",
        "smoothed by 0.2",
        "at most 0.25",
        "0.1 \\cdot",
        "at least 0.2 % of the plane",
        "within 1.5 regions",
    ],
    "figures/README.md": ["arXiv 2409.09011", "about 3.5 MB"],
    "benchmarks/README.md": [
        "at least 0.2 % of the plane",
        "bfloat16, PyTorch 2.15.0",
        "Pythae 0.1.2",
        "its default learning rate of 0.0001, the usual 0.001, and two",
        "a learning rate of 0.003, a weight decay of 0.4",
        "epoch 0: L_tot 161.47 L_likelihood -157.01 L_divergence 4.46",
        "epoch 1: L_tot 160.73 L_likelihood -155.26 L_divergence 5.47",
        "epoch 59: L_tot 129.28 L_likelihood -122.03 L_divergence 7.25",
    ],
}


@pytest.mark.parametrize("name", ORDER)
def test_every_figure_is_from_a_run(name):
    text, known, place, left = (PROJECT / name).read_text(encoding="utf-8"), figures(), 0, ""
    for figure in ORDER[name].split():
        whole = rf"(?<![\d.]){re.escape(known[figure])}(?!\d|\.\d)"
        found = re.compile(whole).search(text, place)
        assert found, f"{figure}: {known[figure]} is not where it should be"
        left, place = left + text[place : found.start()], found.end()
    left += text[place:]
    for constant in CONSTANTS.get(name, []):
        assert constant in left
        left = left.replace(constant, "")
    assert not re.findall(r".{0,40}\d\.\d.{0,20}", left)


PARTS = {  # of auto_encoder.py's docstring: the row of the ablation
    "Bayes' rule on a grid": "usual VAE",
    "regions (": "encoder without regions",
    "Muon (AdamW for all": "AdamW for all, no Muon",
    "self-organising map": "no self-organising map",
    "sines and cosines": "no sines and cosines",
    "label smoothing": "no label smoothing",
    "doubled variance": "variance not doubled",
}


def test_what_each_part_buys():
    """The table in the docstring of auto_encoder.py, in its order, against the ablation."""
    docstring = ast.get_docstring(ast.parse((PROJECT / "auto_encoder.py").read_text()))
    table = docstring.partition("What the parts buy")[2]
    rows = re.findall(r"^    (\S.*\S) +(-?\d+\.\d)$", table, re.MULTILINE)
    for (words, nats), (part, variant) in zip(rows, PARTS.items(), strict=True):
        assert words.startswith(part)
        assert nats == f"{without(variant):.1f}"
    with_map = round(ablation_mean("default", "islands"))
    without_map = round(ablation_mean("no self-organising map", "islands"))
    assert f"{without_map} islands instead of {with_map}" in table


def test_runs_differ_only_as_said():
    for seed, run in enumerate(SEEDS):
        assert run["settings"] == DEFAULT["settings"] | {"seed": seed}
    fashion = {"data": FASHION["settings"]["data"]}
    assert FASHION["settings"] == DEFAULT["settings"] | fashion != DEFAULT["settings"]


def test_the_shipped_pictures_have_the_mark_of_a_run():
    """Without it a later run would leave those that it does not write."""
    pictures = [PROJECT / "encoder.png", *(PROJECT / "imgs_generated").glob("*.png")]
    pictures += [PROJECT / "figures" / name for name in (*FIGURES, "generated.png")]
    assert len(pictures) == 1 + 20 + len(FIGURES) + 1
    for path in pictures:
        assert MARK.encode() in path.read_bytes()[:MARK_WITHIN], path


def test_quadrature_is_of_the_shipped_model():
    assert GRIDS[324] == pytest.approx(DEFAULT["results"]["log_likelihood"], abs=1e-3)
