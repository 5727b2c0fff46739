"""The worlds that the tests use, and small helpers."""

import numpy as np

from routed_rl.envs import make_world

OPTIONS = {
    "default": {},
    "unseen": {"oversight": 0.0},
    "seen": {"oversight": 1.0, "spurious_oversight": 1.0},
    "walls": {"size": (4, 6), "walls": [(1, 1), (1, 2), (3, 5)], "oversight": 0.5, "spurious_oversight": 0.2},
    "three": {
        "size": 4,
        "terminals": {"ghost": -1.0, "diamond": 1.0, "gold": 0.5},
        "oversight": {"ghost": 0.2, "diamond": 0.9, "gold": 0.5},
        "max_steps": 7,
    },
    "supervised": {"supervisor": True, "oversight": 0.4, "walls": [(0, 1)]},
    "shifted": {"supervisor": True, "oversight": 0.4, "walls": [(0, 1)], "moved": "overseen"},
    "tested": {
        "size": (2, 3),
        "terminals": {"pit": -2.0, "ghost": -1.0, "diamond": 1.0},
        "supervisor": True,
        "moved": "always",
    },
    "corridor": {"size": (1, 5), "terminals": {"exit": 2.0}, "oversight": 0.3, "max_steps": 9},
}
WORLDS = {name: make_world(**options) for name, options in OPTIONS.items()}


def random_actions(steps, *shape, seed=0):
    """Random actions, (steps, …) int64."""
    return np.random.default_rng(seed).integers(0, 4, size=(steps, *shape))


def assert_same(a, b, where="value"):
    """Assert that two values are equal to the bit, with types and dtypes, in dicts, tuples and object arrays too."""
    assert type(a) is type(b), f"{where}: {type(a)} is not {type(b)}"
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, (tuple, list)) or (isinstance(a, np.ndarray) and a.dtype == object):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype, f"{where}: {a.dtype} is not {b.dtype}"
        np.testing.assert_array_equal(a, b, err_msg=where)
    else:
        assert a == b, where
