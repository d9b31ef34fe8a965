"""The figures in README and Report are those that the runs wrote: each, and no other.

Every phrase with a figure is made here from the runs' JSON files and must stand in the document;
what is left of the document without these phrases must not hold a decimal number.
"""

import json
import math
import re
from statistics import mean, stdev

import pytest
from conftest import PROJECT

from evaluation import format_elbo, format_epoch


def read_json(name):
    return json.loads((PROJECT / name).read_text())


def runs(name):
    """The runs with seeds 0, 1 and 2."""
    return [read_json(f"benchmarks/runs/{name}{end}.json") for end in ("", "_seed1", "_seed2")]


DEFAULT = read_json("checkpoints/vae.json")
SEEDS = [DEFAULT, *(read_json(f"benchmarks/runs/seed{seed}.json") for seed in (1, 2))]
NETWORK = read_json("benchmarks/runs/network.json")
EPOCHS60 = read_json("benchmarks/runs/epochs60.json")
THREADS1 = read_json("benchmarks/runs/threads1.json")
STRESS = read_json("tests/stress.json")
KILLS, DISKS = STRESS["kills"], STRESS["disks"]
LATENT20, AE32 = runs("latent20"), runs("ae32")
ABLATION, SPEED, RECIPE, ANALYSIS, GENERATION = (
    read_json(f"benchmarks/{name}.json")
    for name in ("ablation", "speed", "recipe", "analysis", "generation")
)
GRIDS = {grid["side"]: grid["log_likelihood"] for grid in read_json("benchmarks/quadrature.json")}

ROWS = {  # the name of a row of the results: the figure of a run, its format
    "L_tot": (lambda run: run["results"]["test"]["L_tot"], ".2f"),
    "L_likelihood": (lambda run: run["results"]["test"]["L_likelihood"], ".2f"),
    "L_divergence": (lambda run: run["results"]["test"]["L_divergence"], ".2f"),
    "log p(x), grey-scale, exact": (lambda run: run["results"]["log_likelihood"], ".2f"),
    "log p(x), binarized, exact": (lambda run: run["results"]["log_likelihood_binarized"], ".2f"),
    "k-NN accuracy of the last 1000 codes, %": (
        lambda run: 100 * run["results"]["knn_accuracy"],
        ".1f",
    ),
}
held_out_tot = ROWS["L_tot"][0]


def train_tot(run):
    return run["log"][-1]["train"]["L_tot"]


def spread(figures, form=".2f"):
    return f"{mean(figures):{form}} ± {stdev(figures):{form}}"


def train_line(run, epoch):
    return f"epoch {epoch}: {format_elbo(run['log'][epoch]['train'])}"


def gap(run):
    return f"{held_out_tot(run) + run['results']['log_likelihood']:.2f}"


def ablation_row(name):
    tot, binarized, accuracy, seconds = ABLATION[name].values()
    return f"| {name} | {tot:.2f} | {binarized:.2f} | {accuracy:.3f} | {seconds:.0f} |"


def result_rows(*, with_network):
    for name, (figure, form) in ROWS.items():
        first = f"{figure(DEFAULT):{form}}"
        if name == "L_tot":
            first = f"**{first}**"
            if with_network:
                seeds = spread([train_tot(run) for run in SEEDS])
                name += f" (training: {train_tot(DEFAULT):.2f}; seeds 0, 1, 2: {seeds})"
        row = f"| {name} | {first} | {spread([figure(run) for run in SEEDS], form)} |"
        yield row + (f" {figure(NETWORK):{form}} |" if with_network else "")


def readme_phrases():
    yield from result_rows(with_network=False)
    yield from (format_epoch(epoch, DEFAULT["log"][epoch]) for epoch in (0, 1, 19))
    yield from (train_line(EPOCHS60, epoch) for epoch in (0, 1, 59))
    yield from (train_line(LATENT20[0], epoch) for epoch in (0, 1, 19))
    yield from map(ablation_row, ABLATION)
    yield (
        f"PyTorch {DEFAULT['versions']['torch'].split('+')[0]} on a virtual machine with two "
        f"x86-64 cores (AMX, AVX-512): {DEFAULT['training_seconds']:.0f} s of training, "
        f"{DEFAULT['total_seconds']:.0f} s in all"
    )
    yield f"changes the mean log p(x) of the test set by {abs(GRIDS[324] - GRIDS[648]):.4f} nats"
    yield f"reaches a test L_tot of {SPEED['test_L_tot_of_conventional_example']:.2f}"
    yield f"after {SPEED['its_seconds']:.1f} s"
    yield f"below that after {SPEED['our_seconds_to_that_figure']:.1f} s from the start"
    yield f"{SPEED['times_sooner']:.1f} times sooner"
    yield f"A training step takes {SPEED['milliseconds_a_step']:.1f} ms"
    yield f"take {SPEED['milliseconds_of_float32_products']:.1f} ms in float32"
    yield f"take {SPEED['milliseconds_of_products_as_multiplied']:.1f} ms in bfloat16"
    yield f"at {100 * SPEED['share_of_float32_floor']:.0f} % of the speed"
    products = SPEED["milliseconds_of_products_as_multiplied"]
    share = 100 * products / SPEED["milliseconds_a_step"]
    yield f"at {share:.0f} % of what the bfloat16 products do"
    yield f"Peak memory is {SPEED['peak_memory_MB']} MB"
    random, even = GENERATION["random"], GENERATION["even"]
    yield f"A classifier with {100 * GENERATION['classifier_test_accuracy']:.2f} % accuracy"
    yield f"a mean confidence of {100 * even['mean_confidence']:.1f} %"
    yield f"(`--draws random`) {100 * random['mean_confidence']:.1f} %"
    yield f"real test images {100 * GENERATION['confidence_in_test_images']:.1f} %"
    yield f"The 20 images show {even['mean_digits']:.1f} different digits on average"
    yield f"with independent draws {random['mean_digits']:.1f}"
    yield f"the shipped ones show {even['digits_of_seed_0']}."
    yield f"ours end at {held_out_tot(EPOCHS60):.2f} (sixty epochs, two latents)"
    yield f"and {spread([held_out_tot(run) for run in LATENT20])} (20 latents, seeds 0, 1, 2)"
    latents = [name.split()[0] for name in ABLATION if name.endswith("latents")]
    yield f"{min(latents, key=lambda n: ABLATION[f'{n} latents']['L_tot'])} do best"
    for start, row in (("recipe: sigmoid", "recipe"), ("ours on the same 2,000", "ours")):
        assert start in README
        yield f"epochs | {RECIPE[row]['nats']:.2f} | {RECIPE[row]['per_pixel']:.4f} |"
    yield f"{KILLS['kills']} SIGKILLs at random times: {KILLS['starting']} before the first epoch"
    yield f"{KILLS['training']} in training, {KILLS['evaluating, drawing and writing']} in"
    yield f"{KILLS['generating']} in generating"
    yield f"temporary files left behind: {KILLS['temporary files left for the next run']}, removed"
    yield f"{DISKS['empty disk: refused before training']} trainings refused before they began"
    yield f"{DISKS['empty disk: room enough']} had room; with older outputs"
    yield f"{DISKS['older outputs: refused before training, untouched']} refused"
    yield f"untouched, {DISKS['older outputs: room enough']} had room"
    yield f"L_tot {held_out_tot(THREADS1):.2f} on the test set, and three and four threads"
    ours, floor = mean(map(held_out_tot, AE32)), AE32[0]["results"]["entropy_of_grey_pixels"]
    yield f"0, 1, 2 | {spread([held_out_tot(run) for run in AE32])} | {ours / 784:.4f} |"
    yield f"which no model can pass | {floor:.2f} | {floor / 784:.4f} |"
    yield f"Ours ends {ours - floor:.2f} nats above the floor"


def report_phrases():
    yield from result_rows(with_network=True)
    short = re.findall(r"^\| (.*?) \|.*\| \d+ \|$", REPORT_LINES, flags=re.MULTILINE)
    assert len(short) >= 6
    yield from map(ablation_row, short)
    versions = DEFAULT["versions"]
    yield f"Python {versions['python']}, PyTorch {versions['torch'].split('+')[0]}"
    yield f"NumPy {versions['numpy']}"
    yield f"{DEFAULT['training_seconds']:.0f} s of training, {DEFAULT['total_seconds']:.0f} s with"
    yield f"changes log p(x) by {abs(GRIDS[324] - GRIDS[648]):.4f} nats"
    yield f"ours there: {train_tot(EPOCHS60):.2f} after 60 epochs"
    yield f"10 epochs | {SPEED['test_L_tot_of_conventional_example']:.2f} | |"
    inference = ANALYSIS["gap"]
    yield f"lie {inference['mean']:.2f} nats with our encoder"
    yield f"(median image {inference['median']:.2f}, 90th percentile"
    yield f"{inference['90th_percentile']:.2f}) and {gap(NETWORK)} with the network"
    pairs = ", ".join(f"{pair} ({count})" for pair, count in ANALYSIS["most_confused"][:3])
    yield f"the k-NN errs {ANALYSIS['errors']} times, most often between {pairs}."
    distance = ANALYSIS["median_distance"]
    yield (
        f"{distance['own']:.4f} from the nearest training code of its own digit and "
        f"{distance['another']:.2f} from the nearest of another"
    )
    digits = sorted(ANALYSIS["accuracy_of_digit"].items(), key=lambda pair: pair[1])
    (worst, low), (best, high) = digits[0], digits[-1]
    yield f"Best is digit {best} with {100 * high:.1f} %"
    yield f"worst digit {worst} with {100 * low:.1f} %"
    divergence = DEFAULT["results"]["test"]["L_divergence"]
    yield f"{divergence:.2f} nats of divergence are {divergence / math.log(2):.1f} bits"
    yield f"one in {round(math.exp(divergence), -2):,.0f} equal shares"
    yield f"deviation is {ANALYSIS['median_deviation_of_posterior']:.3f}."
    first, second = ANALYSIS["deviation_of_codes"]
    yield f"codes' deviation is {first:.2f} and {second:.2f} in the two coordinates"
    random, even = GENERATION["random"], GENERATION["even"]
    yield f"A classifier ({100 * GENERATION['classifier_test_accuracy']:.2f} % on the test set)"
    yield (
        f"a mean probability of {100 * random['mean_confidence']:.1f} % with independent draws and "
        f"of {100 * even['mean_confidence']:.1f} % with the evenly spread ones"
    )
    yield f"(real test images: {100 * GENERATION['confidence_in_test_images']:.1f} %)"
    yield f"they show {random['mean_digits']:.1f} and {even['mean_digits']:.1f} different digits"
    yield f"the shipped 20 show {even['digits_of_seed_0']}."
    yield f"the same networks reach {spread([held_out_tot(run) for run in LATENT20])}"
    overfit = held_out_tot(DEFAULT) - train_tot(DEFAULT)
    yield f"The training L_tot is {overfit:.2f} nats below the test L_tot"


CONSTANTS = {  # figures that no run here wrote: settings, versions needed, and what others report
    "README.md": [
        "Python 3.10",
        "page(margin: 1.4cm); #set text(9.8pt)",
        "set text(9.3pt)",
        "already installed, 2.9 or newer",
        "| 0.005, 0.003 |",
        "epoch 0: L_tot 161.47 L_likelihood -157.01 L_divergence 4.46",
        "epoch 1: L_tot 160.73 L_likelihood -155.26 L_divergence 5.47",
        "epoch 59: L_tot 129.28 L_likelihood -122.03 L_divergence 7.25",
        "epoch 0: L_tot 129.55 L_likelihood -113.06 L_divergence 16.49",
        "epoch 1: L_tot 113.52 L_likelihood -93.73 L_divergence 19.79",
        "epoch 19: L_tot 103.72 L_likelihood -80.75 L_divergence 22.97",
        "CC BY-SA 3.0",
    ],
    "Report.md": [
        "rate 0.005",
        "60 epochs | 129.28 |",
        "normal | 137.1 | -135.7 |",
        "hyperspherical | 133.7 | -132.5 |",
    ],
}
README, REPORT = (
    " ".join((PROJECT / name).read_text(encoding="utf-8").split()) for name in CONSTANTS
)
REPORT_LINES = (PROJECT / "Report.md").read_text(encoding="utf-8")
DOCUMENTS = {
    "README.md": (README, list(readme_phrases())),
    "Report.md": (REPORT, list(report_phrases())),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_figure_is_from_a_run(name):
    text, phrases = DOCUMENTS[name]
    missing = [phrase for phrase in phrases + CONSTANTS[name] if phrase not in text]
    assert not missing
    for phrase in sorted(phrases + CONSTANTS[name], key=len, reverse=True):
        text = text.replace(phrase, "")
    assert not re.findall(r".{0,40}\d\.\d.{0,20}", text)


def test_runs_differ_only_as_said():
    for seed, run in enumerate(SEEDS):
        assert run["settings"] == DEFAULT["settings"] | {"seed": seed}
    network = {"encoder": "network", "lr": 3e-3}
    assert NETWORK["settings"] == DEFAULT["settings"] | network
    assert THREADS1["settings"] == DEFAULT["settings"]
    assert THREADS1["machine"]["threads"] == 1
    assert THREADS1["results"] == DEFAULT["results"]
    assert EPOCHS60["settings"] == DEFAULT["settings"] | {"epochs": 60}
    for seed in range(3):
        changed = {"latent_dim": 20, "seed": seed} | network
        assert LATENT20[seed]["settings"] == DEFAULT["settings"] | changed
        changed |= {"model": "ae", "latent_dim": 32}
        assert AE32[seed]["settings"] == DEFAULT["settings"] | changed


def test_quadrature_is_of_the_shipped_model():
    assert GRIDS[324] == pytest.approx(DEFAULT["results"]["log_likelihood"], abs=1e-3)


def test_generated_images_show_nine_digits():
    assert GENERATION["classifier_test_accuracy"] >= 0.99
    assert GENERATION["even"]["digits_of_seed_0"] >= 9
