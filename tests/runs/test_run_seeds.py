"""Child seeds: fixed values in a range, different for different paths."""

import pytest

from routed_rl.runs import derive_seed


def test_values_never_change() -> None:
    assert derive_seed(0) == 1751011464
    assert derive_seed(3, "env", 7) == 2116086883
    assert derive_seed(-1, "ü") == 1256314929


def test_other_paths_give_other_seeds_in_range() -> None:
    paths = [(), ("1",), (1,), ("a", "b"), ("ab",), ("b", "a"), ("a", 1, 2), ("a", 12), ('a", "b',)]
    seeds = [derive_seed(seed, *path) for seed in range(200) for path in paths]
    assert len(set(seeds)) == len(seeds)
    assert 0 <= min(seeds) < 2**22
    assert 2**31 - 2**22 < max(seeds) < 2**31


@pytest.mark.parametrize("seed", ["3", 3.0, None, True, float("nan")])
def test_a_seed_that_is_no_integer_is_refused(seed: object) -> None:
    with pytest.raises(ValueError, match="must be an integer") as raised:
        derive_seed(seed, "env")  # type: ignore[arg-type]
    assert repr(seed) in str(raised.value)


def test_a_path_element_that_is_no_name_is_refused() -> None:
    with pytest.raises(TypeError, match=r"must be a string or an integer, got 1\.5"):
        derive_seed(3, "env", 1.5)  # type: ignore[arg-type]
