"""How every process that computes is set up."""

import os

from routed_rl.wording import written


def one_thread() -> None:
    """One thread per process: more are slower on small networks, and change the bits. Denormals, slow too, are 0."""
    import torch

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def check_device(device: str, count: int = 1) -> None:
    """Raise ValueError if torch has no such device here, or fewer than this many."""
    if device != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        raise ValueError(f"no CUDA device is available: train with {written('--device', 'cpu')}")
    if torch.cuda.device_count() < count:
        raise ValueError(
            f"{written('--processes', count)} needs as many GPUs, and there are {torch.cuda.device_count()}"
        )


def cuda_devices(together: int = 1) -> list[str]:
    """Return values of CUDA_VISIBLE_DEVICES, by which runs may be told which GPUs they have; none for a single GPU.

    Args:
        together: GPUs of a run.
    """
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = list(visible.split(",") if visible else map(str, range(count)))
    return [",".join(names[i : i + together]) for i in range(0, count - together + 1, together)]


def usual_workers(device: str, together: int = 1) -> int:
    """Return how many runs are done at once unless the user says so: 2, or as many as there are GPUs for.

    Args:
        together: processes of a run.
    """
    if device == "cuda":
        return max(len(cuda_devices(together)), 1)
    return max(min(2, os.cpu_count() or 1) // together, 1)
