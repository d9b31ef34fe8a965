"""The two scripts, in this process, on real MNIST slices: what they print, write and refuse."""

import json
import os
import re
import runpy
import shutil
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    PROJECT,
    assert_one_line,
    call,
    contents,
    digests,
    flags,
    table_of,
    write_idx_folder,
    write_lines,
)
from PIL import Image

import auto_encoder
import decoder_generate
import models
from auto_encoder import GRID_SETTINGS, PLAIN_SETTINGS
from data import MNIST
from lib import explorer
from lib.devices import choose_device
from lib.errors import InputError
from lib.figures import FIGURES
from models import SHIPPED, VAE, GridVAE, checkpoint_bytes, load_checkpoint

TERMS = r"L_tot ([\d.]+) L_likelihood -([\d.]+) L_divergence ([\d.]+)"
LINE = re.compile(rf"epoch (\d+): {TERMS}(?: \| validation {TERMS})? \| (?:test|held-out) {TERMS}")


def vae_of(folder):
    return folder / "checkpoints/vae.safetensors"


def read_json(folder, name="vae"):
    return json.loads((folder / f"checkpoints/{name}.json").read_text())


def generate(checkpoint, out, *more):
    return call(decoder_generate, "--checkpoint", checkpoint, "--out", out, *more)


@pytest.fixture
def no_pictures(monkeypatch):
    """Trainings draw nothing, as most of their time would go there."""
    monkeypatch.setattr(auto_encoder, "draw_pictures", lambda shown: {})


@pytest.fixture
def no_training(monkeypatch):
    """A training that begins is a failure."""
    monkeypatch.setattr(auto_encoder, "train_epoch", lambda *_: pytest.fail("trained"))


# --- What a training gives --------------------------------------------------------------------


def test_log_and_metrics(finished_run):
    """The log has the homework's form, and the JSON the same metrics."""
    read, placing, *lines, _ = finished_run.lines
    assert read.startswith("data: 1,500 training and 1,100 test images from /")
    assert placing == "placing the training images on a self-organising map ..."
    metrics = read_json(finished_run.folder)
    for epoch, line in enumerate(lines[:2]):
        number, *terms = (float(part) for part in LINE.fullmatch(line).groups() if part)
        assert number == epoch
        for split, (total, likelihood, divergence) in {
            "train": terms[:3],
            "test": terms[3:],
        }.items():
            assert abs(total - likelihood - divergence) < 0.02
            logged = metrics["log"][epoch][split]
            assert logged["L_tot"] == pytest.approx(total, abs=0.006)
            assert logged["L_likelihood"] == pytest.approx(-likelihood, abs=0.006)
            assert logged["L_divergence"] == pytest.approx(divergence, abs=0.006)
    results = metrics["results"]
    text = "\n".join(lines[2:])
    gap = results["test"]["L_tot"] - results["laplace"]["L_tot"]
    for part in (
        f"test L_tot {results['test']['L_tot']:.2f} ",
        f"the encoder's first proposal alone L_tot {results['first_proposal']['L_tot']:.2f} ",
        f"Laplace posterior L_tot {results['laplace']['L_tot']:.2f} ",
        f"the encoder's L_tot is {gap:.2f} higher",
        f"log p(x) {results['log_likelihood']:.2f} grey-scale, "
        f"{results['log_likelihood_binarized']:.2f} binarized",
        f"k-NN accuracy {results['knn_accuracy']:.3f} of the last 1000 test codes",
    ):
        assert part in text
    assert results["test"]["L_tot"] < metrics["log"][0]["test"]["L_tot"]


def numpy_elbo(vae, images, encode):
    """L_tot and L_divergence by plain NumPy, with 2 x 2 nodes of Gauss-Hermite quadrature."""
    x = torch.from_numpy(images.reshape(-1, 784) / 255).float()
    nodes, weights = np.polynomial.hermite.hermgauss(2)
    totals, divergences = [], []
    for part in x.split(1000):
        with torch.no_grad():
            mean, logvar = (term.double().numpy() for term in encode(part))
            likelihood = 0
            for i, j in np.ndindex(2, 2):
                z = mean + np.exp(logvar / 2) * np.sqrt(2) * nodes[[i, j]]
                logits = vae.decode(torch.from_numpy(z).float()).numpy()
                log_p = (part.numpy() * logits - np.logaddexp(0, logits)).sum(1)
                likelihood = likelihood + weights[i] * weights[j] / np.pi * log_p
        divergence = (mean**2 + np.exp(logvar) - 1 - logvar).sum(1) / 2
        totals.append(divergence - likelihood)
        divergences.append(divergence)
    return np.concatenate(totals).mean(), np.concatenate(divergences).mean()


@pytest.mark.parametrize("run", ["short", "shipped"])
def test_results_agree_with_a_recomputation(trained, mnist, run):
    """L_tot of a short run and of the shipped model, from encode and decode."""
    folder = trained if run == "short" else PROJECT
    images = mnist.test_images[-1100:] if run == "short" else mnist.test_images
    # A run averages 16 samples, so its results differ from run to run by 0.02 to 0.1 nats.
    tolerance = 0.3 if run == "short" else 0.06
    results = read_json(folder)["results"]
    vae = load_checkpoint(vae_of(folder))
    assert vae.metadata["results"] == results
    for name, encode in (("test", vae.encode), ("laplace", vae.laplace_posterior)):
        total, divergence = numpy_elbo(vae, images, encode)
        assert results[name]["L_tot"] == pytest.approx(total, abs=tolerance)
        assert results[name]["L_divergence"] == pytest.approx(divergence, abs=0.01)
        assert results[name]["L_likelihood"] == pytest.approx(divergence - total, abs=tolerance)


def test_scatter_and_neighbours_of_the_last_1000(finished_run, mnist):
    """One point each, with its own label; the k-NN accuracy again, by plain NumPy."""
    vae = load_checkpoint(vae_of(finished_run.folder))
    labels = mnist.test_labels[-1000:]
    with torch.no_grad():
        known, asked = (
            vae.encode(torch.tensor(images).flatten(1) / 255)[0].numpy()
            for images in (mnist.train_images[:1500], mnist.test_images[-1000:])
        )
    drawn, drawn_labels, *title = finished_run.scatter
    assert "last 1000 test images" in str(title)
    assert np.allclose(drawn, asked, atol=1e-4)
    assert np.array_equal(drawn_labels, labels)
    nearest = np.argsort(np.square(asked[:, None] - known).sum(2), axis=1)[:, :15]
    votes = [np.bincount(row).argmax() for row in mnist.train_labels[nearest]]
    accuracy = read_json(finished_run.folder)["results"]["knn_accuracy"]
    assert accuracy == pytest.approx(np.mean(votes == labels), abs=0.01)  # near ties


def test_validation_and_patience(tmp_path, tiny_mnist, mnist, monkeypatch, no_pictures):
    """With metrics made to rise after the second epoch, that epoch's weights are kept."""
    epoch_metrics = auto_encoder.epoch_metrics
    images = torch.tensor(mnist.train_images[:300]).flatten(1) / 255
    weights = []

    def rising(model, x_train, x_validation, x_test, som_phase):
        assert len(x_validation) == 50
        assert torch.equal(torch.cat([x_train, x_validation]), images)
        entry = epoch_metrics(model, x_train, x_validation, x_test, som_phase)
        entry["validation"]["L_tot"] = [300, 200, 210, 205, 199][len(weights)]
        weights.append(model.decoder.net[0].weight.detach().clone())
        return entry

    monkeypatch.setattr(auto_encoder, "epoch_metrics", rising)
    options = {"model": "ae", "epochs": 5, "validation": 50, "patience": 2}
    result = call(auto_encoder, *flags(tmp_path, tiny_mnist, **options))
    assert result.status == 0
    assert LINE.fullmatch(result.stdout.splitlines()[1])
    assert len(weights) == 4
    kept = load_checkpoint(tmp_path / "checkpoints/ae.safetensors")
    summary = read_json(tmp_path, "ae")
    assert kept.metadata["epochs"] == summary["epochs"] == 2
    assert torch.equal(kept.decoder.net[0].weight, weights[1])
    assert not torch.equal(weights[1], weights[3])
    x = torch.tensor(mnist.test_images[-100:]).flatten(1) / 255
    logits = kept.decode(kept.codes(x)).detach().double().numpy()
    total = (np.logaddexp(0, logits) - x.numpy() * logits).sum(1).mean()
    known = {"L_tot": total, "L_likelihood": -total, "L_divergence": 0}
    assert summary["results"]["test"] == pytest.approx(known, rel=1e-4)


def test_another_seed_gives_other_initial_weights(tmp_path, tiny_mnist, no_pictures):
    """With a learning rate near 0 they are those that are saved; the same seed gives the same."""
    saved = {}
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        options = {"model": "ae", "epochs": 1, "lr": 1e-9, "seed": seed}
        assert call(auto_encoder, *flags(tmp_path / name, tiny_mnist, **options)).status == 0
        model = load_checkpoint(tmp_path / name / "checkpoints/ae.safetensors")
        saved[name] = model.decoder.net[0].weight
    assert torch.equal(saved["first"], saved["again"])
    assert (saved["first"] - saved["other"]).abs().max() > 0.1
    assert digests(tmp_path / "first") == digests(tmp_path / "again")


@pytest.fixture(scope="module")
def table(tmp_path_factory, mnist):
    """A table of 200 training digits, with column names."""
    header = ",".join(["label", *map(str, range(784))])
    lines = table_of(mnist.train_images[:200], mnist.train_labels[:200])
    return write_lines(tmp_path_factory.mktemp("table") / "digits.csv", [header, *lines])


OTHER_MODELS = {
    "ae, 32 latents, a table": {"model": "ae", "latent_dim": 32, "batch_size": 64, "lr": 0.01},
    "1 latent": {"latent_dim": 1},
    "20 latents": {"latent_dim": 20},
    "ae": {"model": "ae", "threads": 1, "device": "cpu"},
}


@pytest.mark.parametrize("kind", OTHER_MODELS)
def test_other_models_and_digits(tmp_path, tiny_mnist, table, monkeypatch, kind):
    """The layout below --out, the settings, and that the decoder makes images of its codes."""
    monkeypatch.chdir(tmp_path)
    options = OTHER_MODELS[kind]
    digits = table if "table" in kind else tiny_mnist
    result = call(auto_encoder, *flags("mine", digits, epochs=1, **options))
    assert (result.status, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert LINE.fullmatch(lines[1])
    count = re.search(r"of the last (\d+) (test|held-out) codes", result.stdout)
    assert count[2] == ("held-out" if "table" in kind else "test")
    assert 35 <= int(count[1]) <= 45 if "table" in kind else count[1] == "100"
    name = options.get("model", "vae")
    figures = set(FIGURES)
    if options.get("latent_dim", 2) != 2:
        figures.remove("explorer.html")
    expected = {f"checkpoints/{name}.safetensors", f"checkpoints/{name}.json", "encoder.png"}
    expected |= {f"figures/{figure}" for figure in figures}
    assert set(contents(Path("mine"))) == expected
    assert lines[-1].startswith("wrote ")
    assert set(lines[-1].removeprefix("wrote ").split(", ")) == {f"mine/{n}" for n in expected}
    settings = read_json(Path("mine"), name)["settings"]
    assert settings["batch_size"] == options.get("batch_size", PLAIN_SETTINGS.batch_size)
    assert settings["lr"] == options.get("lr", PLAIN_SETTINGS.lr)
    checkpoint = f"mine/checkpoints/{name}.safetensors"
    assert generate(checkpoint, "images", "--count", 3).status == 0
    assert len(contents(Path("images"))) == 3


def test_layout_of_the_default_model(trained):
    """A run leaves these files below --out, and no others."""
    names = {"checkpoints/vae.safetensors", "checkpoints/vae.json", "encoder.png"}
    assert set(contents(trained)) == names | {f"figures/{name}" for name in FIGURES}
    settings = read_json(trained)["settings"]
    assert (settings["batch_size"], settings["lr"]) == (GRID_SETTINGS.batch_size, GRID_SETTINGS.lr)


def test_defaults_are_the_project_itself():
    """Without flags the shipped files are read and written."""
    args = auto_encoder.parse_arguments([])
    assert (args.data, args.out) == (MNIST, PROJECT)
    files = auto_encoder.output_files(args.out, args.model)
    assert files.pop("checkpoint") == SHIPPED
    assert not files.pop("resume").exists()
    assert all(path.is_file() for path in files.values())
    args = decoder_generate.parse_arguments([])
    assert (args.checkpoint, args.out) == (SHIPPED, PROJECT / "imgs_generated")


@pytest.mark.parametrize("owner", ["ours", "somebody else's"])
def test_a_page_of_an_earlier_model(trained, tmp_path, tiny_mnist, owner, no_pictures):
    """A model of three latents has none: an older one is removed, another file is not."""
    page = tmp_path / "figures/explorer.html"
    page.parent.mkdir()
    ours = (trained / "figures/explorer.html").read_bytes()
    page.write_bytes(ours if owner == "ours" else b"<!DOCTYPE html> mine")
    assert call(auto_encoder, *flags(tmp_path, tiny_mnist, epochs=1, latent_dim=3)).status == 0
    assert page.exists() == (owner != "ours")


def test_a_single_training_image(tmp_path, mnist):
    """It works, and without a warning."""
    one = mnist.train_images[:1], mnist.train_labels[:1]
    digits = write_idx_folder(tmp_path / "digits", one, one)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = call(auto_encoder, *flags(tmp_path, digits, epochs=1))
    assert (result.status, result.stderr) == (0, "")


# --- Flags that cannot work -------------------------------------------------------------------


def test_help_names_the_defaults():
    """Those of a VAE with two latents and those of others; no flag that was replaced."""
    said = " ".join(call(auto_encoder, "--help").stdout.split())
    for name in ("batch_size", "lr"):
        two, others = getattr(GRID_SETTINGS, name), getattr(PLAIN_SETTINGS, name)
        assert f"(default {two} for a VAE of 2 latents, {others} for others)" in said
    assert "--out" in said
    assert "--scatter" not in said


BAD = """--epochs 0, --epochs two, --batch-size -5, --lr nan, --lr 1e39, --latent-dim 0, --seed -1
--threads 0, --device tpu, --device cuda, --model gan, --validation 300, --patience 2, --colour red
--out , --data no/such/folder, --data /dev/null, --out digits.csv, --out digits.csv/more"""


@pytest.mark.parametrize("bad", [*re.split(", |\n", BAD), f"--out {'x' * 300}"])
def test_impossible_training_flags(tmp_path, tiny_mnist, monkeypatch, no_training, bad):
    """One line before training that names the flag or the path; nothing is written."""
    monkeypatch.setitem(sys.modules, "torchvision", None)  # no download
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "digits.csv", ["mine"])
    before = contents(tmp_path)
    flag, value = bad.split(" ")
    is_path = flag in ("--data", "--out") and value
    result = call(auto_encoder, *flags("out", tiny_mnist), flag, value)
    assert_one_line(result, value if is_path else flag)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("flag", ["--checkpoint", "--scatter", "--figures", "--no-figures"])
@pytest.mark.parametrize("value", [[], ["mine"]])
def test_flags_of_earlier_versions(no_training, flag, value):
    """One line that names the new one."""
    assert_one_line(call(auto_encoder, flag, *value), flag, "--out DIR")


@pytest.mark.parametrize("kind", ["the output is a link", "the input is a link"])
def test_an_output_never_replaces_the_data(tmp_path, tiny_mnist, table, no_training, kind):
    """Whichever of the two is a link to the other."""
    place = tmp_path / "encoder.png"
    if kind == "the output is a link":
        data = table
        place.symlink_to(table)
    else:
        data = shutil.copytree(tiny_mnist, tmp_path / "digits")
        images = data / "t10k-images-idx3-ubyte"
        images.rename(place)
        images.symlink_to(place)
    before = contents(tmp_path)
    assert_one_line(call(auto_encoder, *flags(tmp_path, data)), place, "input", "--out")
    assert contents(tmp_path) == before


def test_the_page_template_is_missing(tmp_path, tiny_mnist, monkeypatch, no_training):
    """lib/ was copied without it: one line, before training."""
    monkeypatch.setattr(explorer, "TEMPLATE", tmp_path / "explorer.html")
    assert_one_line(call(auto_encoder, *flags(tmp_path, tiny_mnist)), "explorer.html", "lib/")


def refuse(device):
    """As a GPU for which PyTorch has no kernels."""
    raise RuntimeError("no kernel image is available\nand more lines")


def test_a_gpu_that_cannot_be_used(monkeypatch, capsys):
    """By default the CPU is taken, with one line; a device that was named is refused."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto", refuse) == torch.device("cpu")
    assert capsys.readouterr().err.count("\n") == 1
    for name in ("cuda", "mps", "cuda:1"):
        with pytest.raises(InputError, match=f"--device {name}: .*no kernel image.*cpu"):
            choose_device(name, refuse)
    assert choose_device("auto", lambda device: None) == torch.device("cuda")
    assert choose_device("cpu", refuse) == torch.device("cpu")


# --- Images -----------------------------------------------------------------------------------


def test_generated_images(trained, tmp_path):
    """20 different PNG files, reproducible from the seed, in place of earlier ones."""

    def images(name, *more):
        result = generate(vae_of(trained), tmp_path / name, *more)
        assert (result.status, result.stderr) == (0, "")
        return contents(tmp_path / name)

    first = images("a")
    assert sorted(first) == [f"{n:02d}.png" for n in range(20)]
    assert len(set(first.values())) == 20
    for path in (tmp_path / "a").iterdir():
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (28, 28))
    assert images("b", "--seed", 0) == first
    assert images("a", "--seed", 1) != first
    assert images("a", "--draws", "random") != first
    assert len(images("a", "--count", 30)) == 30
    assert images("a") == first  # those that are too many are gone


def test_surplus_images_of_somebody_else_stay(trained, tmp_path):
    """Among those that are too many a file without our mark is kept."""
    assert generate(vae_of(trained), tmp_path, "--count", 22).status == 0
    (tmp_path / "20.png").write_bytes(b"mine")
    assert generate(vae_of(trained), tmp_path).status == 0
    assert sorted(contents(tmp_path)) == [f"{n:02d}.png" for n in range(21)]
    assert (tmp_path / "20.png").read_bytes() == b"mine"


@pytest.mark.parametrize("out", ["imgs_generated", "./figures/../imgs_generated", "link", "other"])
def test_the_sheet_belongs_to_the_default_folder(trained, tmp_path, monkeypatch, out):
    """By whatever name that is given; another folder leaves the sheet as it is."""
    monkeypatch.chdir(tmp_path)
    for name in ("imgs_generated", "figures"):
        Path(name).mkdir()
    Path("link").symlink_to("imgs_generated")
    monkeypatch.setattr(decoder_generate, "OUT", tmp_path / "imgs_generated")
    monkeypatch.setattr(decoder_generate, "SHEET", tmp_path / "figures/generated.png")
    result = generate(vae_of(trained), out, "--count", 2)
    assert (result.status, result.stderr) == (0, "")
    assert Path("figures/generated.png").exists() == (out != "other")
    assert ("generated.png" in result.stdout) == (out != "other")


CODES = {
    "commas and a space": "0.5,-1\n1.5, 0.25\n",
    "blanks and a tab": "  0.5 -1\n1.5\t0.25",
    "empty lines": "\n0.5,-1\n\n1.5,0.25\n\n",
    "a BOM and Windows' line ends": "\ufeff0.5,-1\r\n1.5,0.25\r\n",
    "a comment": "# two codes\n0.5 -1\n1.5 0.25\n",
}


@pytest.mark.parametrize("kind", CODES)
def test_codes_from_a_file(trained, tmp_path, kind):
    """The images are the decoder's means, in the order of the lines."""
    (tmp_path / "codes").write_text(CODES[kind], encoding="utf-8", newline="")
    out = tmp_path / "images"
    assert generate(vae_of(trained), out, "--codes", tmp_path / "codes").status == 0
    assert sorted(contents(out)) == ["00.png", "01.png"]
    codes = torch.tensor([[0.5, -1.0], [1.5, 0.25]])
    means = load_checkpoint(vae_of(trained)).decode(codes).double().sigmoid().detach()
    for number, mean in enumerate(means.numpy()):
        pixels = np.asarray(Image.open(out / f"{number:02d}.png")) / 255
        assert np.abs(pixels.ravel() - mean).max() < 0.51 / 255


BAD_CODES = ["", "\n\n", "1,,2\n", "1_0 2\n", "1,2,3\n", "1\n", "0 0\n1 2 3\n", "1,two\n"]
BAD_CODES += ["0,0\n1,inf\n", "nan 0\n", "1e300 0\n", "0 1000001\n", "1;2\n", "\x89PNG\r\n\x1a\n\0"]


@pytest.mark.parametrize("text", BAD_CODES)
def test_bad_codes(trained, tmp_path, text):
    """One line that names the file, and no image."""
    codes = tmp_path / "codes"
    codes.write_text(text, encoding="latin-1")
    assert_one_line(generate(vae_of(trained), tmp_path / "images", "--codes", codes), codes)
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize("bad", ["--count -1", "--count 0", "--seed x", "--sed 1", "--codes none"])
def test_impossible_generator_flags(trained, tmp_path, bad):
    """One line, and older images stay."""
    assert generate(vae_of(trained), tmp_path, "--count", 1).status == 0
    before = contents(tmp_path)
    assert_one_line(generate(vae_of(trained), tmp_path, *bad.split()), bad.split()[0])
    assert contents(tmp_path) == before


def test_an_image_never_replaces_an_input(trained, tmp_path):
    """Neither the codes nor the checkpoint, if they are named like an image."""
    place = tmp_path / "00.png"
    place.write_text("0 0\n")
    assert_one_line(generate(vae_of(trained), tmp_path, "--codes", place), place, "input")
    place.write_bytes(vae_of(trained).read_bytes())
    before = contents(tmp_path)
    assert_one_line(generate(place, tmp_path), place, "input")
    assert contents(tmp_path) == before


def test_images_that_are_not_finite(tmp_path):
    """A model whose training went wrong: one line."""
    model = GridVAE((8, 8), (8, 8))
    for weight in model.state_dict().values():
        weight.fill_(3e38)
    (tmp_path / "vae").write_bytes(checkpoint_bytes(model))
    assert_one_line(generate(tmp_path / "vae", tmp_path / "images"), "not finite")


def test_codes_need_as_many_numbers_as_the_model_has_latents(tmp_path):
    """One line that says how many."""
    (tmp_path / "vae").write_bytes(checkpoint_bytes(VAE(7, (8, 8), (8, 8))))
    (tmp_path / "codes").write_text("0 0\n")
    result = generate(tmp_path / "vae", tmp_path / "images", "--codes", tmp_path / "codes")
    assert_one_line(result, "needs 7")


# --- In somebody else's process ---------------------------------------------------------------


def test_main_takes_arguments(tmp_path, monkeypatch, capsys):
    """From Python, whatever the arguments of the process are."""
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    decoder_generate.main(["--count", "2", "--out", str(tmp_path)])
    assert sorted(contents(tmp_path)) == ["00.png", "01.png"]
    with pytest.raises(InputError, match="no/such"):
        auto_encoder.main(["--data", "no/such", "--out", str(tmp_path)])


def interrupted(*_):
    """As Ctrl-C, or the interrupt button of a notebook."""
    os.kill(os.getpid(), signal.SIGINT)
    raise AssertionError("the interrupt was lost")


ENDINGS = {  # how a run ends: the arguments, and the status
    "done": (["--count", "1"], None),
    "an error": (["--count", "0"], 2),
    "Ctrl-C": (["--count", "1"], 130),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_notebook_runs_a_script(tmp_path, monkeypatch, capsys, ending):
    """As %run does: only SystemExit comes out, and Ctrl-C then does what it did before."""
    arguments, status = ENDINGS[ending]
    script = str(PROJECT / "decoder_generate.py")
    monkeypatch.setattr(sys, "argv", [script, "--out", str(tmp_path), *arguments])
    if ending == "Ctrl-C":
        monkeypatch.setattr(models, "sample_noise", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    found = None
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        found = stop.code
    assert found == status
    assert signal.getsignal(signal.SIGINT) is handler
    assert capsys.readouterr().err.count("\n") == (0 if ending == "done" else 1)
