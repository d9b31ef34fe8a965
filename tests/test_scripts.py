"""The two scripts, in this process, on real MNIST slices."""

import io
import json
import os
import re
import shutil
import sys
import time
import warnings
from pathlib import Path, PureWindowsPath

import matplotlib.figure
import numpy as np
import pytest
import torch
from conftest import (
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
from auto_encoder import FIGURES, GRID_SETTINGS, PLAIN_SETTINGS
from models import SHIPPED, VAE, GridVAE, checkpoint_bytes, load_checkpoint

TERMS = r"L_tot ([\d.]+) L_likelihood -([\d.]+) L_divergence ([\d.]+)"
LINE = re.compile(rf"epoch (\d+): {TERMS}(?: \| validation {TERMS})? \| (?:test|held-out) {TERMS}")


def generate(folder, out, *more):
    """Run the generator with the checkpoint of a folder."""
    return call(decoder_generate, "--checkpoint", folder / "vae.safetensors", "--out", out, *more)


def read_json(folder):
    return json.loads((folder / "vae.json").read_text())


def test_log_and_metrics(finished_run):
    """The log has the homework's form, and the JSON the same metrics."""
    read, placing, *lines, wrote = finished_run.lines
    assert read.startswith("data: 1,500 training and 1,100 test images from /")
    assert placing == "placing the training images on a self-organising map ..."
    metrics = read_json(finished_run.folder)
    for epoch, line in enumerate(lines[:2]):
        number, *terms = (float(part) for part in LINE.fullmatch(line).groups() if part)
        assert number == epoch
        for offset, split in ((0, "train"), (3, "test")):
            total, likelihood, divergence = terms[offset : offset + 3]
            assert abs(total - likelihood - divergence) < 0.02
            assert metrics["log"][epoch][split]["L_tot"] == pytest.approx(total, abs=0.006)
    text, results = "\n".join(lines[2:]), metrics["results"]
    gap = results["test"]["L_tot"] - results["laplace"]["L_tot"]
    for part in (
        "test L_tot",
        "Laplace posterior L_tot",
        f"the encoder's L_tot is {gap:.2f} higher",
        "log p(x)",
    ):
        assert part in text
    assert f"{finished_run.folder}/encoder.png" in wrote
    assert results["test"]["L_tot"] < metrics["log"][0]["test"]["L_tot"]


def numpy_elbo(vae, images, encode):
    """L_tot and L_divergence by plain NumPy, with 5 x 5 nodes of Gauss-Hermite quadrature."""
    x = torch.from_numpy(images.reshape(-1, 784) / 255).float()
    nodes, weights = np.polynomial.hermite.hermgauss(5)
    totals, divergences = [], []
    for part in x.split(1000):
        with torch.no_grad():
            mean, logvar = (term.double().numpy() for term in encode(part))
            likelihood = 0
            for i, j in np.ndindex(5, 5):
                z = mean + np.exp(logvar / 2) * np.sqrt(2) * nodes[[i, j]]
                logits = vae.decode(torch.from_numpy(z).float()).double().numpy()
                log_p = (part.double().numpy() * logits - np.logaddexp(0, logits)).sum(1)
                likelihood = likelihood + weights[i] * weights[j] / np.pi * log_p
        divergence = (mean**2 + np.exp(logvar) - 1 - logvar).sum(1) / 2
        totals.append(divergence - likelihood)
        divergences.append(divergence)
    return np.concatenate(totals).mean(), np.concatenate(divergences).mean()


def test_results_agree_with_a_recomputation(trained, mnist):
    """L_tot of a short run and of the shipped model, from encode and decode."""
    for folder, images, tolerance in (
        (trained, mnist.test_images[-1100:], 0.3),
        (SHIPPED.parent, mnist.test_images, 0.06),
    ):
        results, vae = read_json(folder)["results"], load_checkpoint(folder / "vae.safetensors")
        assert vae.metadata["results"] == results
        for name, encode in (("test", vae.encode), ("laplace", vae.laplace_posterior)):
            total, divergence = numpy_elbo(vae, images, encode)
            # The run averages 16 samples, so that it differs from run to run by 0.02 to 0.1 nats.
            assert results[name]["L_tot"] == pytest.approx(total, abs=tolerance)
            assert results[name]["L_divergence"] == pytest.approx(divergence, abs=0.01)
            assert results[name]["L_likelihood"] == pytest.approx(divergence - total, abs=tolerance)


def test_scatter_and_neighbours_of_the_last_1000(finished_run, mnist):
    """One point each, with its own label; the k-NN accuracy again, by plain NumPy."""
    vae, labels = (
        load_checkpoint(finished_run.folder / "vae.safetensors"),
        mnist.test_labels[-1000:],
    )
    known, asked = (
        vae.encode(torch.tensor(images).flatten(1) / 255)[0].detach().numpy()
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


def test_resume_refuses_another_run(interrupted, tmp_path, tiny_mnist):
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    for other in ("--batch-size 7", "--seed 3", "--latent-dim 4", "--model ae", "--epochs 9"):
        result = call(auto_encoder, *flags(tmp_path, tiny_mnist), "--resume", *other.split())
        assert_one_line(result, "--resume", other.split()[0])
    for name, change in (("train-labels-idx1-ubyte", 8), ("t10k-images-idx3-ubyte", 900)):
        digits = shutil.copytree(tiny_mnist, tmp_path.parent / f"other {name}")
        content = bytearray((digits / name).read_bytes())
        content[change] = (content[change] + 1) % 10
        (digits / name).write_bytes(content)
        result = call(auto_encoder, *flags(tmp_path, digits), "--resume")
        assert_one_line(result, "another --data")
    assert digests(tmp_path) == digests(interrupted)
    assert call(auto_encoder, *flags(tmp_path, tiny_mnist), "--resume").status == 0
    result = call(auto_encoder, *flags(tmp_path, tiny_mnist), "--resume")  # now it is finished
    assert_one_line(result, "vae.resume.safetensors")


def test_help_names_the_defaults():
    said = " ".join(call(auto_encoder, "--help").stdout.split())
    for name in ("batch_size", "lr"):
        two, others = getattr(GRID_SETTINGS, name), getattr(PLAIN_SETTINGS, name)
        assert f"(default {two} for a VAE of 2 latents, {others} for others)" in said


BAD = """--epochs 0, --epochs two, --batch-size -5, --lr nan, --lr 1e39, --latent-dim 0, --seed -1
--threads 0, --device tpu, --device cuda, --model gan, --validation 300, --patience 2, --colour red
--figures , --data no/such/folder, --data /dev/null, --checkpoint ., --scatter digits.csv/output
--figures digits.csv, --scatter vae.safetensors, --data digits.csv --scatter digits.csv"""


@pytest.mark.parametrize("bad", [*re.split(", |\n", BAD), f"--checkpoint {'x' * 300}"])
def test_impossible_training_flags(tmp_path, tiny_mnist, mnist, monkeypatch, bad):
    """Found before training, also what is in the way of the data or of another output."""
    monkeypatch.setitem(sys.modules, "torchvision", None)  # no download
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(auto_encoder, "train_epoch", lambda *_: pytest.fail("trained"))
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "digits.csv", table_of(mnist.train_images[:50], mnist.train_labels[:50]))
    before = contents(tmp_path)
    flag, value, *more = bad.split(" ")
    in_the_way = "name another output" if more or "vae" in value else ""
    is_path = flag in ("--data", "--checkpoint", "--scatter", "--figures") and value
    result = call(auto_encoder, *flags(Path(), tiny_mnist), flag, value, *more)
    assert_one_line(result, value if is_path else flag, in_the_way)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("digits", "options"),
    [
        ("table", {"latent_dim": 1, "figures": "figures"}),
        ("table", {"model": "ae", "latent_dim": 32, "batch_size": 64, "figures": "figures"}),
        ("folder", {"latent_dim": 20}),
        ("three of one digit", {"figures": "figures"}),
        ("three of one digit", {"model": "ae"}),
    ],
)
def test_other_models_and_digits(tmp_path, tiny_mnist, mnist, monkeypatch, digits, options):
    monkeypatch.chdir(tmp_path)
    chosen = range(200) if digits == "table" else np.flatnonzero(mnist.train_labels == 5)[:3]
    header = ",".join(["label", *map(str, range(784))])
    lines = [header, *table_of(mnist.train_images[chosen], mnist.train_labels[chosen])]
    path = tiny_mnist if digits == "folder" else write_lines(tmp_path / "digits.csv", lines)
    result = call(auto_encoder, *flags(tmp_path, path, epochs=1, **options))
    assert (result.status, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert LINE.fullmatch(lines[2] if lines[1].startswith("placing ") else lines[1])
    settings = read_json(tmp_path)["settings"]
    size, lr = (256, 0.003) if {"model", "latent_dim"} & set(options) else (512, 0.009)
    assert (settings["batch_size"], settings["lr"]) == (options.get("batch_size", size), lr)
    count = settings["data"]["count"]
    held_out = {"table": f"{200 - count} held-out", "folder": "100 test"}.get(digits, "1 held-out")
    assert f"of the last {held_out} codes" in result.stdout
    assert digits != "table" or 155 <= count <= 165
    drawn = {path.name for path in Path().glob("figures/*")}
    assert drawn <= set(FIGURES)
    assert ({"loss.png", "manifold.png"} <= drawn) == ("figures" in options)
    last_line = result.stdout.splitlines()[-1]
    for path in contents(tmp_path):
        assert (path in last_line) == (
            path.endswith((".png", ".html", "vae.safetensors", "vae.json"))
        )
    assert generate(tmp_path, tmp_path / "images", "--count", 3).status == 0
    assert len(contents(tmp_path / "images")) == 3


def test_validation_and_patience(tmp_path, tiny_mnist, mnist, monkeypatch):
    """With figures made to rise after the second epoch, that epoch's weights are kept."""
    measure, weights = auto_encoder.measure, []
    images = torch.tensor(mnist.train_images[:300]).flatten(1) / 255

    def rising(model, x_train, x_validation, x_test, epoch, settings):
        assert len(x_validation) == 50
        assert torch.equal(torch.cat([x_train, x_validation]), images)
        metrics = measure(model, x_train, x_validation, x_test, epoch, settings)
        metrics["validation"]["L_tot"] = [300, 200, 210, 205, 199][epoch]
        weights.append(model.decoder.net[0].weight.detach().clone())
        return metrics

    monkeypatch.setattr(auto_encoder, "measure", rising)
    options = {"model": "ae", "epochs": 5, "validation": 50, "patience": 2}
    assert call(auto_encoder, *flags(tmp_path, tiny_mnist, **options)).status == 0
    assert len(weights) == 4
    kept, summary = load_checkpoint(tmp_path / "vae.safetensors"), read_json(tmp_path)
    assert kept.metadata["epochs"] == summary["epochs"] == 2
    assert torch.equal(kept.decoder.net[0].weight, weights[1])
    assert not torch.equal(weights[1], weights[3])
    x = torch.tensor(mnist.test_images[-100:]).flatten(1) / 255
    logits = kept.decode(kept.codes(x)).detach().double().numpy()
    total = (np.logaddexp(0, logits) - x.numpy() * logits).sum(1).mean()
    known = {"L_tot": total, "L_likelihood": -total, "L_divergence": 0}
    assert summary["results"]["test"] == pytest.approx(known, rel=1e-4)


def test_generated_images(trained, tmp_path):
    """20 different PNG files, reproducible from the seed; with --codes the decoder's means."""

    def images(name, *more):
        result = generate(trained, tmp_path / name, *more)
        assert (result.status, result.stderr) == (0, "")
        return contents(tmp_path / name)

    first, file = images("a"), tmp_path / "codes.csv"
    assert sorted(first) == [f"{n:02d}.png" for n in range(20)]
    assert len(set(first.values())) == 20
    for path in (tmp_path / "a").iterdir():
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (28, 28))
    assert images("b", "--seed", 0) == first
    assert images("a", "--seed", 1) != first
    assert images("a", "--draws", "random") != first
    file.write_text("0.5, -1\n\n1.5 0.25\n0,0\n")
    assert len(images("a", "--codes", file)) == 3
    codes = torch.tensor([[0.5, -1.0], [1.5, 0.25], [0.0, 0.0]])
    means = load_checkpoint(trained / "vae.safetensors").decode(codes).double().sigmoid().detach()
    for number, mean in enumerate(means.numpy()):
        pixels = np.asarray(Image.open(tmp_path / f"a/{number:02d}.png")) / 255
        assert np.abs(pixels.ravel() - mean).max() < 0.51 / 255


@pytest.mark.parametrize("out", ["imgs_generated", "./figures/../imgs_generated", "link", "other"])
def test_the_sheet_belongs_to_the_default_folder(trained, tmp_path, monkeypatch, out):
    """By whatever name that is given; another folder leaves the sheet as it is."""
    monkeypatch.chdir(tmp_path)
    for name in ("imgs_generated", "figures"):
        Path(name).mkdir()
    Path("link").symlink_to("imgs_generated")
    monkeypatch.setattr(decoder_generate, "OUT", tmp_path / "imgs_generated")
    monkeypatch.setattr(decoder_generate, "SHEET", tmp_path / "figures/generated.png")
    result = generate(trained, out, "--count", 2)
    assert (result.status, result.stderr) == (0, "")
    assert Path("figures/generated.png").exists() == (out != "other")
    assert ("generated.png" in result.stdout) == (out != "other")


@pytest.mark.parametrize("script", [auto_encoder, decoder_generate])
def test_two_dashes_as_a_value(script, monkeypatch):
    """For every flag one line; argparse gives an empty list or takes no notice."""
    monkeypatch.setattr(auto_encoder, "train_epoch", lambda *_: pytest.fail("trained"))
    found = re.findall(r"^  (--[a-z-]+)", call(script, "--help").stdout, re.MULTILINE)
    assert {"--checkpoint", "--seed"} < set(found)
    for flag in found:
        if flag != "--help":
            assert_one_line(call(script, f"{flag}=--"), flag)


@pytest.mark.parametrize("flag", ["--checkpoint", "--scatter"])
def test_an_output_never_replaces_an_input(tmp_path, tiny_mnist, monkeypatch, flag):
    """None of the files in the folder that is read, by whatever name."""
    monkeypatch.setattr(auto_encoder, "train_epoch", lambda *_: pytest.fail("trained"))
    folder = shutil.copytree(tiny_mnist, tmp_path / "digits")
    (tmp_path / "link").symlink_to(folder)
    before = contents(tmp_path)
    for name in before:
        for path in (tmp_path / name, tmp_path / "link" / Path(name).name):
            result = call(auto_encoder, *flags(tmp_path / "out", folder), flag, path)
            assert_one_line(result, path, "name another output")
    assert contents(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_temporary_names_are_not_outputs_or_inputs(tmp_path, tiny_mnist, monkeypatch):
    """A run writes and removes .vae.safetensors.tmp and .vae.safetensors.lock."""
    monkeypatch.setattr(auto_encoder, "train_epoch", lambda *_: pytest.fail("trained"))
    for ending in ("tmp", "lock"):
        path = tmp_path / f".vae.safetensors.{ending}"
        result = call(auto_encoder, *flags(tmp_path, tiny_mnist), "--scatter", path)
        assert_one_line(result, path)
        codes = tmp_path / f".00.png.{ending}"
        codes.write_text("0 0\n")
        result = call(decoder_generate, "--codes", codes, "--out", tmp_path)
        assert_one_line(result, "also an input")
        assert codes.exists()


def test_a_plot_of_ones_own_is_not_replaced(tmp_path, tiny_mnist, monkeypatch):
    """A picture of Matplotlib's, of the resolution that the project's own have."""
    monkeypatch.setattr(auto_encoder, "train_epoch", lambda *_: pytest.fail("trained"))
    figure = matplotlib.figure.Figure()
    figure.savefig(tmp_path / "loss.png", dpi=200)
    arguments = flags(tmp_path / "out", tiny_mnist, figures=tmp_path)
    assert_one_line(call(auto_encoder, *arguments), tmp_path / "loss.png", "something else")


@pytest.mark.parametrize("name", ["00.png", "19.png", "20.png"])
def test_images_of_ones_own_are_not_replaced(tmp_path, trained, name):
    """Grey ones of 28 x 28 pixels, as the script's are; 20.png would be one too many."""
    checkpoint = "--checkpoint", trained / "vae.safetensors"
    assert call(decoder_generate, *checkpoint, "--out", tmp_path, "--count", 30).status == 0
    pixels = np.arange(784, dtype=np.uint8).reshape(28, 28)
    Image.fromarray(pixels).save(tmp_path / name)
    before = contents(tmp_path)
    result = call(decoder_generate, *checkpoint, "--out", tmp_path)
    assert_one_line(result, tmp_path / name, "something else")
    assert contents(tmp_path) == before


def test_a_file_that_appears_during_training_is_kept(tmp_path, tiny_mnist, monkeypatch):
    """And the run can be finished once it is out of the way."""
    measure = auto_encoder.measure
    path = tmp_path / "encoder.png"

    def write_a_file(*arguments):
        path.write_text("mine")
        return measure(*arguments)

    monkeypatch.setattr(auto_encoder, "measure", write_a_file)
    arguments = flags(tmp_path, tiny_mnist, epochs=1)
    assert_one_line(call(auto_encoder, *arguments), path, "something else")
    assert path.read_text() == "mine"
    path.unlink()
    assert call(auto_encoder, *arguments, "--resume").status == 0


@pytest.mark.parametrize("name", ["05.png", ".05.png.tmp"])
def test_images_and_sheet_are_replaced_together(trained, tmp_path, monkeypatch, name):
    """A folder in the way of one of them leaves all as they are."""
    monkeypatch.setattr(decoder_generate, "OUT", tmp_path / "images")
    monkeypatch.setattr(decoder_generate, "SHEET", tmp_path / "sheet.png")
    out = tmp_path / "images"
    assert generate(trained, out).status == 0
    (out / name).unlink(missing_ok=True)
    (out / name).mkdir()
    before = contents(tmp_path)
    assert_one_line(generate(trained, out, "--seed", 5), out / name)
    assert contents(tmp_path) == before


def test_a_read_only_image_is_kept(trained, tmp_path, monkeypatch):
    """Also one that would be removed because there are fewer now."""
    out = tmp_path / "images"
    assert generate(trained, out, "--count", 5).status == 0
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: access(path, mode) and Path(path).name != "03.png"
    )
    before = contents(out)
    assert_one_line(generate(trained, out, "--count", 3), out / "03.png", "read-only")
    assert contents(out) == before


def test_codes_are_an_ordinary_file(trained, tmp_path):
    """A pipe without a writer would never end; a temporary name would be removed."""
    os.mkfifo(tmp_path / "pipe")
    result = generate(trained, tmp_path / "images", "--codes", tmp_path / "pipe")
    assert_one_line(result, tmp_path / "pipe", "ordinary file")
    codes = tmp_path / ".99.png.tmp"
    codes.write_text("1 2\n")
    assert_one_line(generate(trained, tmp_path, "--codes", codes), codes)
    assert codes.exists()


FOREIGN = {
    "vae.json": b'{"name": "my package", "settings": {"epochs": 3}, "versions": {}}',
    "vae.safetensors": b"mine",
    "vae.resume.safetensors": b"mine",
    "encoder.png": b"mine",
    "figures/loss.png": b"mine",
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("kind", ["another file", "a link"])
def test_what_no_run_made_is_not_replaced(tmp_path, tiny_mnist, monkeypatch, name, kind):
    """Nor what a link leads to that the user did not name."""
    monkeypatch.setattr(auto_encoder, "train_epoch", lambda *_: pytest.fail("trained"))
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    if kind == "a link":
        (tmp_path / "mine").write_bytes(FOREIGN[name])
        path.symlink_to(tmp_path / "mine")
    else:
        path.write_bytes(FOREIGN[name])
    before = contents(tmp_path)
    arguments = flags(tmp_path / "out", tiny_mnist, figures=tmp_path / "out/figures")
    assert_one_line(call(auto_encoder, *arguments), path)
    assert contents(tmp_path) == before


def test_outputs_of_an_earlier_run_are_replaced(trained, tmp_path, tiny_mnist):
    """Also behind links that the user names."""
    shutil.copytree(trained, tmp_path / "out")
    (tmp_path / "scatter").symlink_to(tmp_path / "out/encoder.png")
    (tmp_path / "a.safetensors").symlink_to(tmp_path / "out/vae.safetensors")
    before = contents(tmp_path / "out")
    arguments = flags(tmp_path / "out", tiny_mnist, epochs=1, figures=tmp_path / "out/figures")
    named = "--scatter", tmp_path / "scatter", "--checkpoint", tmp_path / "a.safetensors"
    assert call(auto_encoder, *arguments, *named).status == 0
    after = contents(tmp_path / "out")
    assert after["encoder.png"] != before["encoder.png"]
    assert after["vae.safetensors"] != before["vae.safetensors"]
    assert (tmp_path / "scatter").is_symlink()
    assert (tmp_path / "a.json").exists()
    assert call(auto_encoder, *arguments).status == 0


def test_the_generator_replaces_only_its_own_images(trained, tmp_path):
    out = tmp_path / "images"
    assert generate(trained, out, "--count", 3).status == 0
    photo = io.BytesIO()
    Image.new("L", (64, 64)).save(photo, "PNG")
    before = contents(out)
    for name, content in (("01.png", photo.getvalue()), ("02.png", b"mine")):
        (out / name).write_bytes(content)
        changed = contents(out)
        assert_one_line(generate(trained, out), out / name, "something else")
        assert contents(out) == changed
        (out / name).write_bytes(before[name])
    (out / "03.png").write_bytes(photo.getvalue())  # more than there will be are removed, too
    assert_one_line(generate(trained, out, "--count", 1), out / "03.png", "something else")
    (out / "03.png").unlink()
    (out / "02.png").write_text("0 0\n")
    result = generate(trained, out, "--codes", out / "02.png")
    assert_one_line(result, out / "02.png", "also an input")
    (out / "02.png").write_bytes(before["02.png"])
    (out / ".2024-draft.png.tmp").write_bytes(b"mine")
    (tmp_path / "mine").write_bytes(b"mine")
    (out / "05.png").symlink_to(tmp_path / "mine")
    assert_one_line(generate(trained, out), out / "05.png", "is a link")
    (out / "05.png").unlink()
    assert generate(trained, out).status == 0
    assert (out / ".2024-draft.png.tmp").read_bytes() == b"mine"
    (out / "00.png").unlink()
    (out / "00.png").write_text("0 0\n")
    assert_one_line(generate(trained, out, "--codes", out / "00.png"), "also an input")
    (out / "00.png").write_bytes((trained / "vae.safetensors").read_bytes())
    result = call(decoder_generate, "--checkpoint", out / "00.png", "--out", out)
    assert_one_line(result, "also an input")


def test_a_refused_run_leaves_no_folders(tmp_path, tiny_mnist):
    """Neither if it is refused before training, nor if it comes to no saved epoch."""
    far = tmp_path / "a/b/c"
    arguments = flags(far, tiny_mnist, figures=far / "figures")
    for bad in (("--validation", 300), ("--lr", 1e6)):
        assert call(auto_encoder, *arguments, *bad).status == 2
        assert not list(tmp_path.iterdir())


WINDOWS_PATHS = [r"C:\Users\Zoe\my runs\vae.safetensors", r"D:x\v", r"\\server\share\v"]


@pytest.mark.parametrize("path", WINDOWS_PATHS)
def test_files_beside_a_checkpoint_on_windows(path):
    checkpoint = PureWindowsPath(path)
    beside = auto_encoder.files_beside(checkpoint)
    stem = checkpoint.name.removesuffix(".safetensors")
    assert str(beside["metrics"]) == str(checkpoint.parent / f"{stem}.json")
    assert str(beside["resume"]) == str(checkpoint.parent / f"{stem}.resume.safetensors")


def test_many_codes(trained, tmp_path):
    """More than --count allows are refused at once; as many as it allows are decoded in parts."""
    codes, out = tmp_path / "codes", tmp_path / "images"
    codes.write_text("0 0\n" * 300_000)
    started = time.monotonic()
    assert_one_line(generate(trained, out, "--codes", codes), codes, "more than 10,000")
    assert time.monotonic() - started < 5
    codes.write_text("0 0\n" * 1500 + "1 1\n")
    assert generate(trained, out, "--codes", codes).status == 0
    assert (out / "1499.png").read_bytes() == (out / "00.png").read_bytes()
    assert (out / "1500.png").read_bytes() != (out / "00.png").read_bytes()


@pytest.mark.parametrize("kind", ["one image", "all but one held out"])
def test_a_single_training_image(tmp_path, mnist, kind):
    """It works, and without a warning."""
    count = 1 if kind == "one image" else 5
    train = mnist.train_images[:count], mnist.train_labels[:count]
    digits = write_idx_folder(tmp_path / "digits", train, train)
    options = {"epochs": 1} if count == 1 else {"epochs": 1, "validation": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = call(auto_encoder, *flags(tmp_path, digits, figures=tmp_path, **options))
    assert (result.status, result.stderr) == (0, "")


def test_images_that_are_not_finite(tmp_path):
    model = GridVAE((8, 8), (8, 8))
    for weight in model.state_dict().values():
        weight.fill_(3e38)
    (tmp_path / "vae.safetensors").write_bytes(checkpoint_bytes(model))
    assert_one_line(generate(tmp_path, tmp_path / "images"), "not finite")


BAD_CODES = ["", "1,,2\n", "1_0 2\n", "1,2,3\n", "1,two\n", "0,0\n1,inf\n", "1e300 0\n"]
BAD_CODES += ["3.2e38 -3.2e38\n", "\n" * 200_000, "0 1000001\n"]
BAD_CODES += [f"0 {' ' * 99_997}12 3\n"]  # its 100,000th character is the 1


def test_bad_input_of_the_generator_loses_nothing(trained, interrupted, tmp_path):
    out, damaged, codes = tmp_path / "images", tmp_path / "damaged", tmp_path / "codes"
    assert generate(trained, out).status == 0
    before = contents(out)
    damaged.write_bytes((trained / "vae.safetensors").read_bytes()[:5000])
    others = trained / "encoder.png", interrupted / "vae.resume.safetensors", tmp_path
    for path in (tmp_path / "missing", damaged, *others, "x" * 300):
        assert_one_line(call(decoder_generate, "--checkpoint", path, "--out", out), path)
    for bad in ("--count -1", "--count 0", "--seed x", "--sed 1"):
        assert_one_line(generate(trained, out, *bad.split()), bad.split()[0])
    for path in (damaged, "x" * 300):
        assert_one_line(generate(trained, path), path)
    for text in BAD_CODES:
        codes.write_text(text)
        assert_one_line(generate(trained, out, "--codes", codes), codes)
    (tmp_path / "vae.safetensors").write_bytes(checkpoint_bytes(VAE(7)))
    codes.write_text("0 0\n")
    assert_one_line(generate(tmp_path, out, "--codes", codes), "needs 7")
    assert contents(out) == before
    assert generate(tmp_path, out).status == 0
