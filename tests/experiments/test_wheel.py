"""The wheel, in an empty environment, outside the checkout, beside a user's own `experiments` folder."""

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.experiments.test_documents import in_small

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True)
    (path,) = folder.glob("routed_rl-*.whl")
    return path


@pytest.mark.integration
def test_the_wheel_holds_one_package_with_environments_and_experiments_in_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"routed_rl"}
    assert len(names) == len(set(names))
    assert {"routed_rl/py.typed", "routed_rl/envs/py.typed"} <= set(names)
    kept = {path.relative_to(ROOT / "routed_rl") for path in (ROOT / "routed_rl").rglob("*.py")}
    kept |= {
        path.relative_to(ROOT)
        for p in ("envs", "experiments")
        for path in (ROOT / p).rglob("*.*")
        if path.suffix in (".py", ".toml")
    }
    assert {f"routed_rl/{path}" for path in kept} <= set(names)


@pytest.mark.integration
def test_the_wheel_made_from_the_sdist_holds_the_same(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path], cwd=ROOT, check=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(sdist)], check=True)
    (made,) = tmp_path.glob("*.whl")
    assert sorted(zipfile.ZipFile(made).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


@pytest.mark.integration
def test_the_installed_wheel_runs(wheel, tmp_path):
    environment = tmp_path / "venv"
    venv.create(environment)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--no-compile", "--quiet", str(wheel)], check=True)
    # The dependencies are lent by this environment: appended to the path, where they cannot hide the wheel's packages.
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    project = tmp_path / "project"
    for name in ("envs", "experiments"):
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").write_text("MINE = True\n")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*command):
        done = subprocess.run(command, cwd=project, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    code = """
import gymnasium, sys
gymnasium.make('routed_rl.envs:RoutedRL/DiamondGhost-v0').reset(seed=0)
import routed_rl.envs, routed_rl.experiments
import envs, experiments
print(routed_rl.envs.__file__, routed_rl.experiments.__file__, envs.MINE, experiments.MINE, sep='\\n')
for example in sys.argv[1:]:
    exec(example, {})
"""
    readme = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    readme = [code for code in readme if "OversightStudy" not in code]  # it needs a module of the user's
    assert len(readme) >= 2
    *ours, mine, mine_too = run(python, "-c", code, *map(in_small, readme)).splitlines()[:4]
    assert all(path.startswith(str(site)) for path in ours)
    assert mine == mine_too == "True", "the user's own folders are still theirs"
    for name in ("envs", "experiments"):  # from here on, nothing of ours may import what is the user's
        (project / name / "__init__.py").write_text("raise RuntimeError('not yours')\n")
    shown = run(environment / "bin" / "routed-rl", "quickstart", "--total-steps", "512", "--out", "out")
    assert "steered to Diamond" in shown and "reference" in shown
    assert (project / "out" / "quickstart.png").is_file()
    entry = ["-m", "torch.distributed.run", "--nproc-per-node", "1", "-m", "routed_rl.experiments.cli"]
    assert "--oversight" in run(python, *entry, "train", "--help")
