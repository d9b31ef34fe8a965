"""The two scripts, in this process and as commands, on real MNIST slices."""

import json
import os
import re
import shutil
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import (
    PROJECT,
    assert_one_line,
    call,
    command,
    contents,
    digests,
    flags,
    interrupting,
    start,
    table_of,
    unbroken_flags,
    write_lines,
)
from PIL import Image

import auto_encoder
import decoder_generate
import plots
from data import load_digits
from models import VAE, checkpoint_bytes, draw_noise, load_checkpoint

LINE = re.compile(
    r"epoch (\d+): L_tot ([\d.]+) L_likelihood -([\d.]+) L_divergence ([\d.]+)"
    r"(?: \| validation L_tot [\d.]+ L_likelihood -[\d.]+ L_divergence [\d.]+)?"
    r" \| test L_tot ([\d.]+) L_likelihood -([\d.]+) L_divergence ([\d.]+)"
)


def generate(folder, out, *more):
    """Run the generator with the checkpoint of a folder."""
    return call(decoder_generate, "--checkpoint", folder / "vae.safetensors", "--out", out, *more)


def test_log_and_metrics(trained):
    """The log has the homework's form, and the JSON the same figures."""
    lines = (trained / "stdout").read_text().splitlines()
    metrics = json.loads((trained / "vae.json").read_text())
    for epoch, line in enumerate(lines[:2]):
        number, *figures = map(float, LINE.fullmatch(line).groups())
        assert number == epoch
        for offset, split in ((0, "train"), (3, "test")):
            total, likelihood, divergence = figures[offset : offset + 3]
            assert abs(total - likelihood - divergence) < 0.02
            assert metrics["log"][epoch][split]["L_tot"] == pytest.approx(total, abs=0.006)
    assert lines[2].startswith("test L_tot")
    assert "log p(x)" in lines[3]
    assert "k-NN accuracy" in lines[4]
    assert "of the last 1000 test codes" in lines[4]
    for name in ("vae.safetensors", "vae.json", "encoder.png", "figures"):
        assert str(trained / name) in lines[-1]
    assert (trained / "stderr").read_text() == ""  # no bar without a terminal
    assert metrics["results"]["test"]["L_tot"] < metrics["log"][0]["test"]["L_tot"]


def test_results_agree_with_a_recomputation(trained, small_mnist):
    """L_tot and the k-NN accuracy again, by plain NumPy from encode and decode."""
    results = json.loads((trained / "vae.json").read_text())["results"]
    vae = load_checkpoint(trained / "vae.safetensors")
    assert vae.metadata["results"] == results
    images, labels = load_digits(small_mnist, "test")
    x = images.reshape(-1, 784) / 255
    rng = np.random.default_rng(0)
    with torch.no_grad():
        mean, logvar = (t.double().numpy() for t in vae.encode(torch.tensor(x).float()))
        z = mean + np.exp(logvar / 2) * rng.standard_normal(mean.shape)
        logits = vae.decode(torch.tensor(z).float()).double().numpy()
    likelihood = (x * logits - np.logaddexp(0, logits)).sum(1)
    divergence = (mean**2 + np.exp(logvar) - 1 - logvar).sum(1) / 2
    assert results["test"]["L_divergence"] == pytest.approx(divergence.mean(), abs=0.01)
    assert results["test"]["L_tot"] == pytest.approx((divergence - likelihood).mean(), abs=0.3)
    train_images, train_labels = load_digits(small_mnist, "train")
    known = vae.encode(torch.tensor(train_images.reshape(-1, 784) / 255).float())[0].numpy()
    asked = mean[-1000:]
    distances = np.square(asked[:, None] - known).sum(2)
    votes = train_labels[np.argsort(distances, axis=1)[:, :15]]
    accuracy = np.mean(
        [np.bincount(v).argmax() == t for v, t in zip(votes, labels[-1000:], strict=True)]
    )
    assert results["knn_accuracy"] == pytest.approx(accuracy, abs=0.01)  # near ties


def test_shipped_results_are_those_of_the_shipped_model(mnist):
    """On the last 1000 test images the shipped model is as good as its JSON says of all 10000."""
    metrics = json.loads((PROJECT / "checkpoints/vae.json").read_text())
    vae = load_checkpoint(PROJECT / "checkpoints/vae.safetensors")
    assert vae.metadata["results"] == metrics["results"]
    x = torch.tensor(mnist.test_images).flatten(1).float() / 255
    torch.manual_seed(1)
    with torch.no_grad():
        likelihood, divergence = vae.elbo(x[::4])
    tolerance = 5 * (divergence - likelihood).std().item() / 50
    assert (divergence - likelihood).mean().item() == pytest.approx(
        metrics["results"]["test"]["L_tot"], abs=tolerance
    )


def test_same_seed_same_bytes(tmp_path, tiny_mnist, unbroken):
    assert call(auto_encoder, *unbroken_flags(tmp_path, tiny_mnist)).status == 0
    assert len(digests(tmp_path)) == 7
    assert digests(tmp_path) == digests(unbroken)


def test_another_seed_other_bytes(tmp_path, tiny_mnist, unbroken):
    assert call(auto_encoder, *flags(tmp_path, tiny_mnist, batch_size=50, seed=1)).status == 0
    assert len(digests(tmp_path)) == 2
    assert all(
        one != other for one, other in zip(digests(tmp_path), digests(unbroken)[:2], strict=True)
    )


@pytest.mark.parametrize(
    "options", [{}, {"latent_dim": 5, "validation": 50}, {"model": "ae", "latent_dim": 3}]
)
def test_resume_equals_an_unbroken_run(tmp_path, tiny_mnist, unbroken, monkeypatch, options):
    broken = tmp_path / "broken"

    def arguments(folder):
        if not options:
            return unbroken_flags(folder, tiny_mnist)
        return flags(folder, tiny_mnist, epochs=3, batch_size=200, **options)

    if options:
        unbroken = tmp_path / "unbroken"
        assert call(auto_encoder, *arguments(unbroken)).status == 0
    with monkeypatch.context() as patched:
        patched.setattr(auto_encoder, "train_epoch", interrupting(auto_encoder.train_epoch, 1))
        result = call(auto_encoder, *arguments(broken))
    assert result.status == 130
    assert "--resume" in result.stderr
    assert load_checkpoint(broken / "vae.safetensors").metadata["epochs"] == 1
    resumed = call(auto_encoder, *arguments(broken), "--resume")
    assert resumed.status == 0
    assert resumed.stdout.startswith("epoch 1:")
    assert digests(broken) == digests(unbroken)


def test_control_c(tmp_path, tiny_mnist):
    """A real SIGINT after the first epoch: exit 130, and that epoch's checkpoint is whole."""
    arguments = flags(tmp_path, tiny_mnist, model="ae", epochs=500)
    process = start("auto_encoder.py", *arguments)
    assert process.stdout.readline().startswith("epoch 0:")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    epochs = load_checkpoint(tmp_path / "vae.safetensors").metadata["epochs"]
    assert 1 <= epochs < 500
    assert len(json.loads((tmp_path / "vae.json").read_text())["log"]) in (epochs, epochs - 1)
    saved = re.search(r"after (\d+) epochs; they are saved", stderr)
    assert epochs - int(saved[1]) in (0, 1)


def test_resume_refuses_another_run(trained, tmp_path, small_mnist):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    others = {"batch_size": 7, "seed": 3, "latent_dim": 4, "model": "ae", "epochs": 9}
    for flag, value in others.items():
        result = call(auto_encoder, *flags(tmp_path, small_mnist, **{flag: value}), "--resume")
        assert_one_line(result, "--resume", "--" + flag.replace("_", "-"))
    (tmp_path / "vae.resume.safetensors").unlink()
    result = call(auto_encoder, *flags(tmp_path, small_mnist), "--resume")
    assert_one_line(result, "vae.resume.safetensors")
    assert digests(tmp_path) == digests(trained)


BAD_TRAINING = """--epochs 0/--epochs two/--batch-size -5/--lr 0/--lr nan/--lr 1e39/--latent-dim 0
--seed -1/--threads 0/--device tpu/--encoder magic/--model gan/--validation 300/--patience 2
--colour red/--encoder exact --latent-dim 3/--encoder exact --model ae"""
BAD_DATA = [["--figures", ""], ["--data", "no/such/folder"], ["--data", "/dev/null"]]
BAD_DATA += [["--data", "no-such-table.csv"]]


@pytest.mark.parametrize("bad", [*map(str.split, re.split("[/\n]", BAD_TRAINING)), *BAD_DATA])
def test_impossible_training_flags(tmp_path, tiny_mnist, monkeypatch, bad):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # no download
    flag, value, *more = bad
    result = call(auto_encoder, *flags(tmp_path, tiny_mnist), *bad)
    assert_one_line(result, value if flag == "--data" else flag, *more[:1])
    assert not list(tmp_path.glob("*.p*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_device_that_is_not_there(tmp_path, tiny_mnist):
    result = call(auto_encoder, *flags(tmp_path, tiny_mnist, device="cuda"))
    assert_one_line(result, "--device cuda")


@pytest.mark.parametrize("flag", ["checkpoint", "scatter", "figures"])
@pytest.mark.parametrize("kind", ["a folder", "under a file"])
def test_unwritable_outputs_are_found_before_training(
    tmp_path, tiny_mnist, monkeypatch, flag, kind
):
    monkeypatch.setattr(auto_encoder, "train_epoch", lambda *_: pytest.fail("trained"))
    (tmp_path / "file").write_text("mine")
    bad = tmp_path if kind == "a folder" else tmp_path / "file/output.safetensors"
    if flag == "figures" and kind == "a folder":
        (tmp_path / "loss.png").mkdir()
    result = call(auto_encoder, *flags(tmp_path, tiny_mnist, **{flag: bad}))
    assert_one_line(result, bad)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("flag", ["checkpoint", "scatter", "figures", "data"])
@pytest.mark.parametrize("path", [".", "/", "x" * 300])
def test_paths_that_cannot_be(tmp_path, tiny_mnist, monkeypatch, flag, path):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # no download
    monkeypatch.setattr(auto_encoder, "train_epoch", lambda *_: pytest.fail("trained"))
    if flag == "figures" and path in "./":
        pytest.skip("a folder that is there")
    monkeypatch.chdir(tmp_path)
    result = call(auto_encoder, *flags(tmp_path, tiny_mnist, **{flag: path}))
    assert_one_line(result)


def test_outputs_in_the_way_of_each_other_or_of_the_data(tmp_path, tiny_mnist, mnist, monkeypatch):
    monkeypatch.setattr(auto_encoder, "train_epoch", lambda *_: pytest.fail("trained"))
    lines = table_of(mnist.train_images[:50], mnist.train_labels[:50])
    table = write_lines(tmp_path / "digits.csv", lines)
    before = contents(tiny_mnist), table.read_bytes()
    for changed in (
        {"scatter": tmp_path / "a", "figures": tmp_path / "a"},
        {"checkpoint": tmp_path / "a", "scatter": tmp_path / "a/s.png"},
        {"checkpoint": tmp_path / "encoder.png"},
        {"scatter": tiny_mnist / "train-labels-idx1-ubyte"},
        {"data": table, "scatter": table},
    ):
        result = call(auto_encoder, *flags(tmp_path, tiny_mnist, **changed))
        assert_one_line(result, "name another output")
    assert (contents(tiny_mnist), table.read_bytes()) == before


def test_each_checkpoint_has_metrics_of_its_own(tmp_path):
    others = {"data": tmp_path, "scatter": tmp_path / "s.png", "figures": None}
    names = {"a.safetensors": "a.json", "lr0.1": "lr0.1.json", "a.b.safetensors": "a.b.json"}
    for name, metrics in names.items():
        arguments = SimpleNamespace(checkpoint=tmp_path / name, **others)
        assert auto_encoder.output_files(arguments)["metrics"] == tmp_path / metrics


@pytest.mark.parametrize(
    "options",
    [
        {"latent_dim": 1, "figures": "figures"},
        {"latent_dim": 4},
        {"encoder": "network"},
        {"batch_size": 10**6},
        {"model": "ae"},
        {"model": "ae", "latent_dim": 32, "batch_size": 64, "figures": "figures"},
    ],
)
def test_other_models_train_draw_and_generate(tmp_path, tiny_mnist, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    result = call(auto_encoder, *flags(tmp_path, tiny_mnist, epochs=1, **options))
    assert (result.status, result.stderr) == (0, "")
    assert LINE.fullmatch(result.stdout.splitlines()[0])
    assert len(list((tmp_path / "figures").glob("*.png"))) == (5 if "figures" in options else 0)
    assert generate(tmp_path, tmp_path / "images", "--count", 3).status == 0
    assert len(os.listdir(tmp_path / "images")) == 3


def test_validation_keeps_the_best_weights_and_patience_stops(tmp_path, tiny_mnist, monkeypatch):
    """With figures made to rise after the second epoch, that epoch's weights are kept."""
    train_epoch = auto_encoder.train_epoch
    weights = []

    def rising(model, optimizers, x, watched, epoch, settings):
        assert (len(x), len(watched["validation"])) == (250, 50)
        figures = train_epoch(model, optimizers, x, watched, epoch, settings)
        figures["validation"]["L_tot"] = [300, 200, 210, 205, 199][epoch]
        weights.append(model.decoder.net[0].weight.detach().clone())
        return figures

    monkeypatch.setattr(auto_encoder, "train_epoch", rising)
    result = call(auto_encoder, *flags(tmp_path, tiny_mnist, epochs=5, validation=50, patience=2))
    assert result.status == 0
    assert len(weights) == 4
    kept = load_checkpoint(tmp_path / "vae.safetensors")
    assert kept.metadata["epochs"] == json.loads((tmp_path / "vae.json").read_text())["epochs"] == 2
    assert torch.equal(kept.decoder.net[0].weight, weights[1])
    assert not torch.equal(weights[1], weights[3])


def test_validation_images_are_not_trained_on(tmp_path, tiny_mnist, mnist, monkeypatch):
    seen = []
    train_epoch = auto_encoder.train_epoch

    def watched_epoch(model, optimizers, x, watched, epoch, settings):
        seen.append((x, watched["validation"]))
        return train_epoch(model, optimizers, x, watched, epoch, settings)

    monkeypatch.setattr(auto_encoder, "train_epoch", watched_epoch)
    assert call(auto_encoder, *flags(tmp_path, tiny_mnist, epochs=1, validation=100)).status == 0
    ((trained, held_out),) = seen
    expected = torch.tensor(mnist.train_images[:300]).flatten(1) / 255
    assert torch.equal(torch.cat([trained, held_out]), expected)
    assert len(held_out) == 100


@pytest.mark.parametrize("options", [{}, {"latent_dim": 3}, {"model": "ae"}])
def test_three_images_of_one_digit(tmp_path, mnist, options):
    """Nothing to learn, but nothing to fall over either."""
    three = mnist.train_images[mnist.train_labels == 5][:3]
    header = ",".join(["label", *map(str, range(784))])
    path = write_lines(tmp_path / "digits.csv", [header, *table_of(three, np.full(3, 5))])
    arguments = flags(tmp_path, path, epochs=1, figures=tmp_path / "figures", **options)
    result = call(auto_encoder, *arguments)
    assert (result.status, result.stderr) == (0, "")
    assert "of the last 1 test codes" in result.stdout


@pytest.mark.parametrize("options", [{}, {"model": "ae", "latent_dim": 32}])
def test_table_of_digits(tmp_path, mnist, options):
    lines = table_of(mnist.train_images[:200], mnist.train_labels[:200])
    path = write_lines(tmp_path / "digits.csv", lines)
    arguments = flags(tmp_path, path, epochs=1, **options)
    assert call(auto_encoder, *arguments).status == 0
    metrics = json.loads((tmp_path / "vae.json").read_text())
    assert 155 <= metrics["settings"]["training_images"]["count"] <= 165
    assert generate(tmp_path, tmp_path / "images").status == 0


def test_plain_auto_encoder_reports_its_cross_entropy(tmp_path, tiny_mnist, mnist):
    """L_tot is the binary cross-entropy; the entropy of the pixels' grey values is below it."""
    arguments = flags(tmp_path, tiny_mnist, model="ae", latent_dim=8)
    result = call(auto_encoder, *arguments)
    results = json.loads((tmp_path / "vae.json").read_text())["results"]
    x = mnist.test_images[:100].reshape(100, 784) / 255
    model = load_checkpoint(tmp_path / "vae.safetensors")
    with torch.no_grad():
        p = model.decode(model.encode(torch.tensor(x).float())).sigmoid().double().numpy()
    entropy = -(x * np.log(p) + (1 - x) * np.log1p(-p)).sum(1).mean()
    assert results["test"]["L_tot"] == pytest.approx(entropy, rel=1e-4)
    assert results["test"]["L_divergence"] == 0
    grey = x[(x > 0) & (x < 1)]
    floor = -(grey * np.log(grey) + (1 - grey) * np.log(1 - grey)).sum() / 100
    assert results["entropy_of_grey_pixels"] == pytest.approx(floor, rel=1e-5)
    assert f"above {floor:.2f}" in result.stdout


def test_scatter_has_one_point_for_each_of_the_last_1000(trained, small_mnist, monkeypatch):
    """Exactly test images 9000 to 9999, with their own labels; here the last 1000 of 1100."""
    drawn = []
    draw_scatter = plots.draw_scatter
    monkeypatch.setattr(
        plots, "draw_scatter", lambda *args: drawn.append(args) or draw_scatter(*args)
    )
    folder = trained.parent / "again"
    assert call(auto_encoder, *flags(folder, small_mnist, epochs=1)).status == 0
    ((codes, labels, _, title),) = drawn
    assert title == "Codes of the last 1000 test images"
    images, all_labels = load_digits(small_mnist, "test")
    x = torch.from_numpy(images[100:]).flatten(1).float() / 255
    expected = load_checkpoint(folder / "vae.safetensors").encode(x)[0].numpy()
    assert np.allclose(expected, codes, atol=1e-4)
    assert np.array_equal(labels, all_labels[100:])


def test_generated_images(trained, tmp_path):
    out = tmp_path / "images"
    result = generate(trained, out)
    assert (result.status, result.stderr) == (0, "")
    assert sorted(os.listdir(out)) == [f"{n:02d}.png" for n in range(20)]
    assert len(set(contents(out).values())) == 20
    for file in out.iterdir():
        with Image.open(file) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (28, 28))


def test_generation_is_reproducible_and_follows_its_seed(trained, tmp_path):
    def images(name, seed, *more):
        assert generate(trained, tmp_path / name, "--seed", seed, *more).status == 0
        return contents(tmp_path / name)

    first = images("a", 0)
    assert images("b", 0) == first
    assert images("a", 1) != first
    assert images("a", 0, "--draws", "random") != first


def test_even_draws_fill_every_share_of_the_prior():
    """Of 16 points of a scrambled Sobol sequence each 16th of N(0, 1) holds one, by its theory."""
    for seed in range(5):
        noise = draw_noise(16, 3, seed, "even").double()
        shares = 0.5 * (1 + torch.erf(noise / 2**0.5))
        for column in (16 * shares).int().T:
            assert sorted(column.tolist()) == list(range(16))


@pytest.mark.parametrize("draws", ["even", "random"])
def test_each_draw_is_a_sample_of_the_prior(draws):
    """Over many seeds the last of 20 draws has the moments of N(0, I)."""
    noise = torch.stack([draw_noise(20, 2, s, draws)[-1] for s in range(4000)])
    error = 1 / 4000**0.5
    assert (noise.mean(0).abs() < 4 * error).all()
    assert ((noise.square().mean(0) - 1).abs() < 4 * 2**0.5 * error).all()
    assert noise.prod(1).mean().abs() < 4 * error


def test_generated_pixels_are_the_decoders_means(trained, tmp_path):
    codes = torch.tensor([[0.5, -1.0], [1.5, 0.25], [0.0, 0.0]])
    file = tmp_path / "codes.csv"
    file.write_text("0.5, -1\n\n1.5 0.25\n0,0\n")
    assert generate(trained, tmp_path / "i", "--codes", file).status == 0
    logits = load_checkpoint(trained / "vae.safetensors").decode(codes).detach().double()
    for number, expected in enumerate(1 / (1 + np.exp(-logits.numpy()))):
        pixels = np.asarray(Image.open(tmp_path / f"i/{number:02d}.png")) / 255
        assert np.abs(pixels.ravel() - expected).max() < 0.51 / 255


@pytest.mark.parametrize(
    "arguments", [("--count", "-1"), ("--count", "0"), ("--seed", "x"), ("--sed", "1")]
)
def test_impossible_generator_flags(tmp_path, arguments):
    result = call(decoder_generate, "--out", tmp_path / "i", *arguments)
    assert_one_line(result, arguments[0])
    assert not (tmp_path / "i").exists()


TWO_IN_ONE = f"0 {' ' * 99_997}12 3\n"  # its 100,000th character is the 1


@pytest.mark.parametrize(
    ("text", "part"),
    [(text, "--codes") for text in ("", "1,2,3\n", "1,two\n", "0,0\n1,inf\n", "1e300 0\n")]
    + [(TWO_IN_ONE, "line 1")],
    ids=range(6),
)
def test_bad_codes_file(trained, tmp_path, text, part):
    file = tmp_path / "codes.txt"
    file.write_text(text)
    assert_one_line(generate(trained, tmp_path / "i", "--codes", file), part, file)
    assert not (tmp_path / "i").exists()


def test_generator_with_a_bad_checkpoint_or_folder_loses_nothing(trained, tmp_path):
    out = tmp_path / "images"
    assert generate(trained, out).status == 0
    before = contents(out)
    missing, damaged = tmp_path / "missing.safetensors", tmp_path / "damaged.safetensors"
    damaged.write_bytes((trained / "vae.safetensors").read_bytes()[:5000])
    others = trained / "encoder.png", trained / "vae.resume.safetensors", tmp_path
    for path in (missing, damaged, *others):
        assert_one_line(call(decoder_generate, "--checkpoint", path, "--out", out), path)
    assert_one_line(generate(trained, damaged), damaged)
    assert contents(out) == before


def test_checkpoint_of_another_latent_size(tmp_path):
    """A bigger code is no obstacle to sampling; a file of two-number codes is told the size."""
    (tmp_path / "vae.safetensors").write_bytes(checkpoint_bytes(VAE(7)))
    (tmp_path / "codes").write_text("0 0\n")
    assert generate(tmp_path, tmp_path / "i").status == 0
    result = generate(tmp_path, tmp_path / "i", "--codes", tmp_path / "codes")
    assert_one_line(result, "needs 7")


@pytest.mark.parametrize("path", ["x" * 300, "x" * 300 + "/images"])
def test_generator_paths_that_cannot_be(trained, path):
    assert_one_line(generate(trained, path))
    assert_one_line(call(decoder_generate, "--checkpoint", path))


@pytest.mark.parametrize("script", ["auto_encoder.py", "decoder_generate.py"])
def test_one_line_errors_on_the_command_line(script):
    refused = command(script, "--seed", "none")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert refused.stderr.startswith(script)
