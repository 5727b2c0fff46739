"""How every process that computes is set up."""

import torch


def one_thread() -> None:
    """One thread per process: more are slower on small networks, and change the bits. Denormals, slow too, are 0."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
