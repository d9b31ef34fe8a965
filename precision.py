"""How precisely matrices are multiplied."""

import contextlib
import warnings

import torch


@contextlib.contextmanager
def fast_matmul():
    """Multiply bfloat16 and sum float32 where the processor can (AMX, AVX512-BF16).

    Less training time for the same figures (README's ablation). On CUDA it allows TF32.
    """
    # PyTorch 2.9 alone announces that these functions would be deprecated after it; they are not.
    warnings.filterwarnings("ignore", message="Please use the new API settings to control TF32")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
