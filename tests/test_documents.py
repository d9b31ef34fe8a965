"""The figures in the documents are those that the runs wrote: each, and no other.

Every phrase with a figure is made here from the runs' JSON files and must stand in the document;
what is left of the document without these phrases must not hold a decimal number.
"""

import json
import math
import re
from statistics import mean, stdev

import pytest
from conftest import PROJECT

from evaluation import format_elbo


def read_json(name):
    return json.loads((PROJECT / name).read_text())


DEFAULT = read_json("checkpoints/vae.json")
SEEDS = [DEFAULT, *(read_json(f"benchmarks/runs/seed{seed}.json") for seed in (1, 2))]
THREADS1 = read_json("benchmarks/runs/threads1.json")
SPEED, ANALYSIS, GENERATION, MAP, QUADRATURE = (
    read_json(f"benchmarks/{name}.json")
    for name in ("speed", "analysis", "generation", "map", "quadrature")
)
GRIDS = {grid["side"]: grid["log_likelihood"] for grid in QUADRATURE}


def tot(run, which="test"):
    return run["results"][which]["L_tot"]


def spread(figures, form=".2f"):
    return f"{mean(figures):{form}} ± {stdev(figures):{form}}"


def both(name, figure, form=".2f"):
    """A figure of the shipped run and, as name_seeds, its mean and deviation over three seeds."""
    figures = [figure(run) for run in SEEDS]
    return {name: f"{figures[0]:{form}}", f"{name}_seeds": spread(figures, form)}


def figures():
    """All figures that the documents may show, as they show them: {name: text}."""
    results, versions = DEFAULT["results"], DEFAULT["versions"]
    even, random = GENERATION["even"], GENERATION["random"]
    maps = list(MAP.values())
    divergence = results["test"]["L_divergence"]
    products = SPEED["milliseconds_of_products_as_multiplied"]
    digits = sorted(ANALYSIS["accuracy_of_digit"].items(), key=lambda pair: pair[1])
    pairs = [f"{pair} ({count})" for pair, count in ANALYSIS["most_confused"][:3]]
    named = {
        **both("tot", tot),
        **both("exact", lambda run: tot(run, "exact")),
        **both("gap", lambda run: tot(run) - tot(run, "exact")),
        **both("likelihood", lambda run: run["results"]["test"]["L_likelihood"]),
        **both("divergence", lambda run: run["results"]["test"]["L_divergence"]),
        **both("grey", lambda run: run["results"]["log_likelihood"]),
        **both("binarized", lambda run: run["results"]["log_likelihood_binarized"]),
        **both("knn", lambda run: 100 * run["results"]["knn_accuracy"], ".1f"),
        **both("train", lambda run: run["log"][-1]["train"]["L_tot"]),
        "overfit": f"{tot(DEFAULT) - DEFAULT['log'][-1]['train']['L_tot']:.2f}",
        "python": versions["python"],
        "torch": versions["torch"].split("+")[0],
        "numpy": versions["numpy"],
        "training": f"{DEFAULT['training_seconds']:.0f}",
        "total": f"{DEFAULT['total_seconds']:.0f}",
        "confidence": f"{100 * even['mean_confidence']:.1f}",
        "confidence_random": f"{100 * random['mean_confidence']:.1f}",
        "confidence_real": f"{100 * GENERATION['confidence_in_test_images']:.1f}",
        "classifier": f"{100 * GENERATION['classifier_test_accuracy']:.2f}",
        "kinds": f"{even['mean_digits']:.1f}",
        "kinds_random": f"{random['mean_digits']:.1f}",
        "kinds_shipped": f"{even['digits_of_seed_0']}",
        "islands": f"{mean(m['islands'] for m in maps):.1f}",
        "islands_each": ", ".join(str(m["islands"]) for m in maps),
        "share": f"{mean(m['share_of_largest'] for m in maps):.2f}",
        "unsure": f"{100 * mean(m['share_below_90_percent'] for m in maps):.1f}",
        "quadrature": f"{abs(GRIDS[324] - GRIDS[648]):.4f}",
        "errors": f"{ANALYSIS['errors']}",
        "pairs": ", ".join(pairs),
        "best_digit": f"digit {digits[-1][0]} with {100 * digits[-1][1]:.1f} %",
        "worst_digit": f"digit {digits[0][0]} with {100 * digits[0][1]:.1f} %",
        "own": f"{ANALYSIS['median_distance']['own']:.4f}",
        "another": f"{ANALYSIS['median_distance']['another']:.2f}",
        "deviations": " and ".join(f"{d:.2f}" for d in ANALYSIS["deviation_of_codes"]),
        "width": f"{ANALYSIS['median_deviation_of_posterior']:.3f}",
        "region": f"{100 * ANALYSIS['right_region']:.1f}",
        "gap_right": f"{ANALYSIS['gap_in_right_region']:.2f}",
        "gap_wrong": f"{ANALYSIS['gap_in_wrong_region']:.2f}",
        "bits": f"{divergence / math.log(2):.1f}",
        "shares": f"{round(math.exp(divergence), -2):,.0f}",
        "threads1": f"{tot(THREADS1):.2f}",
        "conventional": f"{SPEED['test_L_tot_of_conventional_example']:.2f}",
        "conventional_seconds": f"{SPEED['its_seconds']:.1f}",
        "sooner_seconds": f"{SPEED['our_seconds_to_that_figure']:.1f}",
        "sooner": f"{SPEED['times_sooner']:.1f}",
        "step": f"{SPEED['milliseconds_a_step']:.1f}",
        "step_float32": f"{SPEED['milliseconds_of_float32_products']:.1f}",
        "step_products": f"{products:.1f}",
        "step_share": f"{100 * products / SPEED['milliseconds_a_step']:.0f}",
        "memory": f"{SPEED['peak_memory_MB']}",
    }
    for epoch in (0, 1, len(DEFAULT["log"]) - 1):
        named[f"epoch{epoch}"] = f"epoch {epoch}: {format_elbo(DEFAULT['log'][epoch]['train'])}"
    return named


FRAGMENTS = {  # of the documents, with the names of figures
    "README.md": [
        "machine (AVX-512), PyTorch {torch}. Choice",
        "BO, **trained encoder** | **{tot}** nats per image (seeds 0 to 2: {tot_seeds}",
        "or instead, the yardstick | {exact} ({exact_seeds}",
        "ation gap, the difference | {gap} ({gap_seeds}",
        "cy of the last 1000 codes | {knn} % ({knn_seeds}",
        "ifier in generated images | {confidence} %, {kinds}",
        "| time | {training} s of training, {total}",
    ],
    "Report.md": [
        "| versions | Python {python}, PyTorch {torch}, torchvision 0.29.2, NumPy {numpy}",
        "e (AVX-512), Linux, no GPU: {training} s of training, {total}",
        "encoder reaches an L_tot of {tot}; the exact posterior, the yardstick, reaches {exact}",
        ". The difference, {gap} nats, i",
        "L_tot, trained encoder | **{tot}** | {tot_seeds}",
        "| L_tot, exact posterior | {exact} | {exact_seeds}",
        "| amortisation gap | {gap} | {gap_seeds}",
        "kelihood, trained encoder | {likelihood} | {likelihood_seeds}",
        "vergence, trained encoder | {divergence} | {divergence_seeds}",
        "g p(x), grey-scale, exact | {grey} | {grey_seeds}",
        "og p(x), binarized, exact | {binarized} | {binarized_seeds}",
        "of the last 1000 codes, % | {knn} | {knn_seeds}",
        "0 hidden units, 10 epochs | {conventional} | {conventional_seconds}",
        "until it is below that | | {sooner_seconds} |",
        "00 test codes the k-NN errs {errors} times, most often between {pairs}",
        ". Best is {best_digit}, worst {worst_digit}. The median test code lies {own}",
        "g code of its own digit and {another} from th",
        ". The codes' deviations are {deviations}, close",
        "ior's 1. An L_divergence of {divergence} nats is {bits}",
        "de singles out one of about {shares} equal s",
        "peak, or one beside it, for {region} % of th",
        "images. There its L_tot is {gap_right} nats ab",
        "for the other images it is {gap_wrong} nats.",
        "**The map.** A classifier ({classifier} % on th",
        "of 81 x 81 codes. They form {islands} islands (mean of three seeds), and {share}",
        "largest of each digit. For {unsure} % of th",
        "sifier's mean confidence is {confidence} % (real test images: {confidence_real}",
        "%), and they show {kinds} differe",
        "rage; the shipped ones show {kinds_shipped}.",
        "L_tot of training images is {overfit} nats be",
    ],
    "benchmarks/README.md": [
        "t16) without a GPU, PyTorch {torch}. L_tot",
        "| L_tot, trained encoder | {tot} | {tot_seeds}",
        "| L_tot, exact posterior | {exact} | {exact_seeds}",
        "| amortisation gap | {gap} | {gap_seeds}",
        "| log p(x), grey-scale | {grey} | {grey_seeds}",
        "| log p(x), binarized | {binarized} | {binarized_seeds}",
        "of the last 1000 codes, % | {knn} | {knn_seeds}",
        "the same bytes (test L_tot {threads1}).",
        "area. Seeds 0, 1 and 2 have {islands_each} islands. {share}",
        "t island of each digit. For {unsure} % of th",
        "The classifier has {classifier} % accur",
        "eeds its mean confidence is {confidence} %, and {confidence_random}",
        "For real test images it is {confidence_real} %. The 20 images show {kinds}",
        "ifferent digits on average, {kinds_random} if draw",
        "nts reaches a test L_tot of {conventional} after {conventional_seconds}",
        "h the trained encoder after {sooner_seconds} s, {sooner}",
        "oner. A training step takes {step} ms. Its",
        "x products alone would take {step_float32} ms in float32 and take {step_products}",
        "loat16, so the step runs at {step_share} % of their speed. Peak memory is {memory}",
        "ver the test set changes by {quadrature} nats.",
        "-157.01 L_divergence 4.46 | {epoch0} |",
        "-155.26 L_divergence 5.47 | {epoch1} |",
        "-122.03 L_divergence 7.25 | {epoch19} |",
        "On the test set ours end at {tot}.",
    ],
    "tests/README.md": [],
    "figures/README.md": [],
}
CONSTANTS = {  # figures that no run here wrote: versions, settings, and what others report
    "README.md": [
        "Python 3.10",
        "about 5.5 GB",
        "CC BY-SA 3.0",
    ],
    "Report.md": [
        "torchvision 0.29.2",
        "matplotlib 3.11.2",
        "rate 0.005 (encoder 0.003)",
    ],
    "benchmarks/README.md": [
        "at least 0.2 % of the area",
        "epoch 0: L_tot 161.47 L_likelihood -157.01 L_divergence 4.46",
        "epoch 1: L_tot 160.73 L_likelihood -155.26 L_divergence 5.47",
        "epoch 59: L_tot 129.28 L_likelihood -122.03 L_divergence 7.25",
    ],
}


@pytest.mark.parametrize("name", FRAGMENTS)
def test_every_figure_is_from_a_run(name):
    text = (PROJECT / name).read_text(encoding="utf-8")
    known = figures()
    phrases = [phrase.format(**known) for phrase in FRAGMENTS[name]] + CONSTANTS.get(name, [])
    assert not [phrase for phrase in phrases if phrase not in text]
    covered = set()
    for phrase in phrases:
        for found in re.finditer(re.escape(phrase), text):
            covered.update(range(*found.span()))
    left = "".join(" " if place in covered else letter for place, letter in enumerate(text))
    assert not re.findall(r".{0,40}\d\.\d.{0,20}", left)


def test_limits_of_the_readme():
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    assert len(text.split()) <= 1200


def test_runs_differ_only_as_said():
    for seed, run in enumerate(SEEDS):
        assert run["settings"] == DEFAULT["settings"] | {"seed": seed}
    assert THREADS1["settings"] == DEFAULT["settings"]
    assert THREADS1["machine"]["threads"] == 1
    assert THREADS1["results"] == DEFAULT["results"]


def test_quadrature_is_of_the_shipped_model():
    assert GRIDS[324] == pytest.approx(DEFAULT["results"]["log_likelihood"], abs=1e-3)
