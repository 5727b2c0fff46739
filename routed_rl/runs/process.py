"""How every process that computes is set up."""

import os

import torch


def one_thread() -> None:
    """One thread per process: more are slower on small networks, and change the bits. Denormals, slow too, are 0."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def check_device(device: str) -> None:
    """ValueError if torch has no such device here."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device is available: train with --device cpu")


def cuda_devices() -> list[str]:
    """The names of CUDA devices by which processes may be told which of them they have, where there are several."""
    if torch.cuda.device_count() < 2:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
    return list(names)[: torch.cuda.device_count()]


def usual_workers(device: str) -> int:
    """Return how many processes are run at once unless the user says so: 2, or one per GPU."""
    return max(len(cuda_devices()), 1) if device == "cuda" else min(2, os.cpu_count() or 1)
