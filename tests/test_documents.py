"""The figures in README and Report are those that the runs wrote."""

import json
import math
import re
from statistics import mean, stdev

import pytest
import torch
from conftest import PROJECT

from models import load_checkpoint

README = (PROJECT / "README.md").read_text(encoding="utf-8")
REPORT = (PROJECT / "Report.md").read_text(encoding="utf-8")


def read_json(name):
    return json.loads((PROJECT / name).read_text())


DEFAULT = read_json("checkpoints/vae.json")
SEEDS = [DEFAULT, *(read_json(f"benchmarks/runs/seed{seed}.json") for seed in (1, 2))]
NETWORK = read_json("benchmarks/runs/network.json")
EPOCHS60 = read_json("benchmarks/runs/epochs60.json")
LATENT20 = [read_json(f"benchmarks/runs/latent20{end}.json") for end in ("", "_seed1", "_seed2")]
AE32 = [read_json(f"benchmarks/runs/ae32{end}.json") for end in ("", "_seed1", "_seed2")]
ROWS = {  # what a row of the results starts with: the figure of a run, its decimals
    "L_tot": (lambda run: run["results"]["test"]["L_tot"], 2),
    "L_likelihood": (lambda run: run["results"]["test"]["L_likelihood"], 2),
    "L_divergence": (lambda run: run["results"]["test"]["L_divergence"], 2),
    "log p(x), grey-scale": (lambda run: run["results"]["log_likelihood"], 2),
    "log p(x), binarized": (lambda run: run["results"]["log_likelihood_binarized"], 2),
    "k-NN accuracy": (lambda run: 100 * run["results"]["knn_accuracy"], 1),
}


def numbers(text):
    return [float(number) for number in re.findall(r"-?\d+\.\d+", text)]


def row(document, start):
    """The numbers of the one table row that starts so."""
    rows = [line for line in document.splitlines() if line.startswith(f"| {start}")]
    assert len(rows) == 1, rows
    return numbers(rows[0])


@pytest.mark.parametrize("start", ROWS)
def test_results_tables(start):
    figure, decimals = ROWS[start]
    figures = [figure(run) for run in SEEDS]
    expected = [figures[0], mean(figures), stdev(figures)]
    assert row(README, start) == [round(value, decimals) for value in expected]
    expected.append(figure(NETWORK))
    assert row(REPORT, start) == [round(value, decimals) for value in expected]


def test_runs_differ_only_as_said():
    for seed, run in enumerate(SEEDS):
        assert run["settings"] == DEFAULT["settings"] | {"seed": seed}
    network = {"encoder": "network", "lr": 3e-3}
    assert NETWORK["settings"] == DEFAULT["settings"] | network
    assert EPOCHS60["settings"] == DEFAULT["settings"] | {"epochs": 60}
    for seed in range(3):
        changed = {"latent_dim": 20, "seed": seed} | network
        assert LATENT20[seed]["settings"] == DEFAULT["settings"] | changed
        changed |= {"model": "ae", "latent_dim": 32}
        assert AE32[seed]["settings"] == DEFAULT["settings"] | changed


def mean_and_deviation(runs):
    figures = [run["results"]["test"]["L_tot"] for run in runs]
    return f"{mean(figures):.2f} ± {stdev(figures):.2f}"


def test_other_models():
    text = " ".join(README.split())
    for run, epochs in ((EPOCHS60, (0, 1, 59)), (LATENT20[0], (0, 1, 19))):
        for epoch in epochs:
            figures = run["log"][epoch]["train"].items()
            line = " ".join(f"{name} {figure:.2f}" for name, figure in figures)
            assert f" epoch {epoch}: {line}\n" in README
    assert (
        f"ours end at {EPOCHS60['results']['test']['L_tot']:.2f} (sixty epochs, two latents) and "
        f"{mean_and_deviation(LATENT20)} (20 latents"
    ) in text
    latents = {
        name.split()[0]: figures["L_tot"]
        for name, figures in read_json("benchmarks/ablation.json").items()
        if name.endswith("latents")
    }
    assert f"{min(latents, key=latents.get)} do best" in text


def test_plain_auto_encoders():
    recipe = read_json("benchmarks/recipe.json")
    floor = AE32[0]["results"]["entropy_of_grey_pixels"]
    ours = mean(run["results"]["test"]["L_tot"] for run in AE32)
    for start, nats, figure in (
        ("a published recipe", recipe["recipe"]["nats"], None),
        ("ours on the same", recipe["ours"]["nats"], None),
        ("ours on the 60,000", ours, mean_and_deviation(AE32)),
        ("the entropy", floor, None),
    ):
        (line,) = (line for line in README.splitlines() if line.startswith(f"| {start}"))
        assert line.endswith(f" | {figure or format(nats, '.2f')} | {nats / 784:.4f} |")
    assert f"{ours - floor:.2f} nats above the floor" in " ".join(README.split())


def test_log_lines():
    quoted = re.findall(r"^epoch (\d+): (.*)$", README, flags=re.MULTILINE)
    assert len(quoted) >= 3
    for epoch, line in quoted:
        entry = DEFAULT["log"][int(epoch)]
        figures = [*entry["train"].values(), *entry["test"].values()]
        assert numbers(line) == [round(figure, 2) for figure in figures]


def test_ablation_table():
    for name, figures in read_json("benchmarks/ablation.json").items():
        tot, binarized, accuracy, seconds = figures.values()
        cells = f"| {name} | {tot:.2f} | {binarized:.2f} | {accuracy:.3f} | {seconds:.0f} |"
        assert cells in README


def test_speed_and_convergence():
    speed = read_json("benchmarks/speed.json")
    text = " ".join(README.split())
    for quoted in (
        f"reaches a test L_tot of {speed['test_L_tot_of_conventional_example']:.2f} "
        f"after {speed['its_seconds']:.1f} s",
        f"below that after {speed['our_seconds_to_that_figure']:.1f} s",
        f"{speed['times_sooner']:.1f} times sooner",
        f"takes {speed['milliseconds_a_step']:.1f} ms",
        f"would take {speed['milliseconds_of_float32_products']:.1f} ms in float32",
        f"take {speed['milliseconds_of_products_as_multiplied']:.1f} ms in bfloat16",
        f"at {100 * speed['share_of_float32_floor']:.0f} % of the speed",
        f"Peak memory is {speed['peak_memory_MB']} MB",
    ):
        assert quoted in text
    grids = {
        grid["side"]: grid["log_likelihood"] for grid in read_json("benchmarks/quadrature.json")
    }
    assert f"by {abs(grids[324] - grids[648]):.4f} nats" in text
    assert grids[324] == pytest.approx(DEFAULT["results"]["log_likelihood"], abs=1e-3)


def test_prose():
    last = DEFAULT["log"][-1]
    divergence = DEFAULT["results"]["test"]["L_divergence"]
    for run in (DEFAULT, NETWORK):
        gap = run["results"]["test"]["L_tot"] + run["results"]["log_likelihood"]
        assert f"{gap:.2f}" in REPORT
    assert f"{divergence / math.log(2):.1f} bits" in REPORT
    assert f"L_tot is {last['train']['L_tot']:.2f} in the last" in REPORT
    assert f"{last['test']['L_tot'] - last['train']['L_tot']:.2f} nats below" in REPORT
    for document in (README, REPORT):
        assert f"{DEFAULT['training_seconds']:.0f} s of training" in document
        assert f"{DEFAULT['total_seconds']:.0f} s in all" in document
        assert f"PyTorch {DEFAULT['versions']['torch'].split('+')[0]}" in document


def test_spread_of_the_codes(mnist):
    x = torch.tensor(mnist.test_images[-1000:]).flatten(1).float() / 255
    spread = load_checkpoint(PROJECT / "checkpoints/vae.pt").encode(x)[0].std(0)
    text = " ".join(REPORT.split())
    assert f"standard deviation is {spread[0]:.1f} and {spread[1]:.1f} in the two" in text
