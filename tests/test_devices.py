"""The choice of a device, by a trial; and the settings of PyTorch that are put back."""

import contextlib
from functools import partial, partialmethod

import pytest
import torch

import auto_encoder
from lib.devices import choose_device
from lib.errors import InputError
from lib.torch_settings import flush_denormal, matmul_precision, one_thread
from models import VAE, AutoEncoder, GridVAE


class Trial:
    """A trial that fails in some way, or in none, and knows on which devices it was made."""

    def __init__(self, error=None):
        self.error = error
        self.devices = []

    def __call__(self, device):
        self.devices.append(device)
        if self.error is not None:
            raise self.error


@pytest.fixture
def has_gpu(monkeypatch):
    """PyTorch says that it sees a GPU; nothing is computed on it in these tests."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def errors_of_devices():
    """What PyTorch raises on devices that cannot do what they should."""
    errors = [
        RuntimeError("no kernel image is available"),
        NotImplementedError("could not run 'aten::eigh'"),
        AssertionError("Torch not compiled with CUDA enabled"),
    ]
    if hasattr(torch, "AcceleratorError"):  # a RuntimeError, in newer versions
        errors.append(torch.AcceleratorError("CUDA error: invalid device function"))
    return errors


def test_auto_takes_a_gpu_that_works(has_gpu, capsys):
    trial = Trial()
    assert choose_device("auto", trial) == torch.device("cuda")
    assert trial.devices == [torch.device("cuda")]
    assert capsys.readouterr() == ("", "")


def test_auto_without_a_gpu_takes_the_cpu_without_a_trial(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    trial = Trial(RuntimeError("never tried"))
    assert choose_device("auto", trial) == torch.device("cpu")
    assert trial.devices == []
    assert capsys.readouterr() == ("", "")


def test_the_cpu_is_never_tried(has_gpu):
    trial = Trial(RuntimeError("never tried"))
    assert choose_device("cpu", trial) == torch.device("cpu")
    assert trial.devices == []


@pytest.mark.parametrize("error", errors_of_devices(), ids=lambda error: type(error).__name__)
def test_a_gpu_that_fails(has_gpu, capsys, error):
    """With "auto" one line says why the CPU is used; a device that was named ends in one line."""
    first_line = str(error).splitlines()[0]
    assert choose_device("auto", Trial(error)) == torch.device("cpu")
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr == f"the GPU cannot be used ({first_line}); the CPU is used\n"
    with pytest.raises(InputError) as refused:
        choose_device("cuda:1", Trial(error))
    message = str(refused.value)
    assert message == f"--device cuda:1: cannot be used ({first_line}); use --device cpu"


def test_a_long_error_is_its_first_line_and_an_empty_one_its_kind(has_gpu):
    with pytest.raises(InputError, match=r"^--device cuda: cannot be used \(first\); use [^\n]+$"):
        choose_device("cuda", Trial(RuntimeError("first\nsecond\nthird")))
    with pytest.raises(InputError, match=r"cannot be used \(NotImplementedError\)"):
        choose_device("cuda", Trial(NotImplementedError()))


def test_ctrl_c_in_a_trial_is_no_failure(has_gpu):
    with pytest.raises(KeyboardInterrupt):
        choose_device("auto", Trial(KeyboardInterrupt()))


@pytest.mark.parametrize("name", ["nonsense", "meta", "cuda:x"])
def test_names_that_are_no_place_to_compute(name):
    """PyTorch's "meta" tensors have shapes, but no numbers."""
    with pytest.raises(InputError) as refused:
        choose_device(name, partial(auto_encoder.try_out, "ae", 2))
    message = str(refused.value)
    assert message.startswith(f"--device {name}: cannot be used (")
    assert message.endswith("use --device cpu")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("kind", "latent_dim", "model_class"),
    [("ae", 2, AutoEncoder), ("vae", 3, VAE), ("vae", 2, GridVAE)],
)
def test_the_trial_itself(monkeypatch, tmp_path, capfd, kind, latent_dim, model_class):
    """On the CPU all that it tries works, and it leaves nothing behind."""
    asked_for = []

    def make_small_model(*arguments):
        """A model of that class with narrow networks, as wide ones take a CPU long."""
        asked_for.append(arguments)
        latents = {} if model_class is GridVAE else {"latent_dim": latent_dim}
        return model_class(**latents, encoder_widths=(8, 8), decoder_widths=(8, 8))

    coarse = partialmethod(GridVAE.log_likelihood, side=27)
    monkeypatch.setattr(GridVAE, "log_likelihood", coarse)
    monkeypatch.setattr(auto_encoder, "make_model", make_small_model)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    auto_encoder.try_out(kind, latent_dim, torch.device("cpu"))
    assert asked_for == [(kind, latent_dim)]
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_num_threads() == threads


# --- Settings of PyTorch ----------------------------------------------------------------------


def value_inside(context, look):
    """What `look` gives inside of a context that is left by an error."""
    values = []
    with contextlib.suppress(ZeroDivisionError), context:
        values.append(look())
        raise ZeroDivisionError
    return values[0]


def test_the_precision_of_products_is_put_back():
    inside = value_inside(matmul_precision("medium"), torch.get_float32_matmul_precision)
    assert inside == "medium"
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_number_of_threads_is_put_back():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert value_inside(one_thread(), torch.get_num_threads) == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_numbers_near_0_are_put_back():
    """1e-39 is a number of float32, but one with fewer digits than the others."""

    def tiny():
        return (torch.tensor(1e-39) * 1).item()

    assert value_inside(flush_denormal(), tiny) == 0
    assert tiny() > 0
