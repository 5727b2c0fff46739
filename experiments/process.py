"""How every process that computes is set up."""

import torch


def one_thread() -> None:
    """One thread per process: more are slower on small networks, and change the bits. Denormals, slow too, are 0."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def check_device(device: str) -> None:
    """ValueError if torch has no such device here."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device is available: train with --device cpu")
