"""``routed-rl watch``: shows a trained agent while it plays, as text in the terminal or as a GIF."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from PIL import Image

from routed_rl.errors import UserError, at_least, user_input
from routed_rl.experiments.common.agents.worlds import ONE_BY_ONE, load_run, make_scalar_env
from routed_rl.experiments.gridworld.options import Watch
from routed_rl.experiments.gridworld.steering import steer
from routed_rl.rl import RoutedAlgorithm
from routed_rl.runs import derive_seed, write_bytes
from routed_rl.runs.process import one_thread


def main(command: Watch) -> None:
    one_thread()
    at_least(1, episodes=command.episodes)
    if not command.fps >= 0.1:
        raise UserError(f"--fps must be at least 0.1, got {command.fps}")
    with user_input():
        model, config = load_run(command.directory)
        name = steer(model, command)
        if command.gif is not None:
            _check_writable(command.gif)
    if command.gif is None and config["world"] in ONE_BY_ONE:
        raise UserError(f"the world {config['world']!r} cannot be shown as text; name a file with --gif")
    env = make_scalar_env(config, "rgb_array" if command.gif else "ansi", test=True)
    if command.gif is None:

        def show(caption: str) -> None:
            print(f"{name}, {caption}\n{env.render()}\n", flush=True)
            time.sleep(1 / command.fps)

        _play(model, env, command, show)
        return
    frames: list[Image.Image] = []
    _play(model, env, command, lambda caption: frames.append(Image.fromarray(env.render())))
    with user_input():
        write_bytes(command.gif, _animation(frames, 1 / command.fps))
    print(f"Wrote {len(frames)} frames of {command.episodes} episodes (policy: {name}) to {command.gif}")


def _animation(frames: list[Image.Image], seconds: float) -> bytes:
    gif = io.BytesIO()
    durations = [round(1000 * seconds)] * len(frames)
    frames[0].save(gif, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return gif.getvalue()


def _check_writable(gif: Path) -> None:
    if gif.suffix.lower() != ".gif":
        raise ValueError(f"--gif must name a file ending in .gif, got {str(gif)!r}")
    if gif.is_dir() or not gif.parent.is_dir() or not os.access(gif.parent, os.W_OK):
        raise ValueError(f"--gif {str(gif)!r} cannot be written: its folder must exist and be writable")


def _play(model: RoutedAlgorithm, env: gym.Env, command: Watch, show: Callable[[str], None]) -> None:
    torch.manual_seed(derive_seed(command.seed, "watch"))
    for episode in range(command.episodes):
        obs, _ = env.reset(seed=derive_seed(command.seed, "watch", episode))
        show(f"episode {episode + 1}")
        done, steps, info = False, 0, {}
        while not done:
            action, _ = model.predict(obs, deterministic=command.greedy)
            obs, _, terminated, truncated, info = env.step(int(np.asarray(action)))
            done, steps = terminated or truncated, steps + 1
            end = f": {info['outcome'] or 'step limit reached'}" if done else ""
            show(f"episode {episode + 1}, step {steps}{end}")
