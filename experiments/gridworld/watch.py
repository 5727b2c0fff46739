"""``routed-rl watch``: shows a trained agent while it plays, as text in the terminal or as a GIF."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Discrete
from PIL import Image, ImageDraw, ImageFont

from routed_rl.envs.rendering import PLAYER, WHITE
from routed_rl.errors import UserError, at_least, user_input
from routed_rl.experiments.common.agents.worlds import ONE_BY_ONE, make_scalar_env
from routed_rl.experiments.gridworld.options import Watch
from routed_rl.experiments.gridworld.steering import open_agent, steer
from routed_rl.rl import RoutedAlgorithm
from routed_rl.rl.oversight_study.tasks import OwnTask
from routed_rl.runs import derive_seed, write_bytes
from routed_rl.runs.process import one_thread

PAUSE = 4
"""Frames for which the end of an episode is shown."""
TEXT = 12
"""Height of a caption's letters, in pixels."""


def main(command: Watch) -> None:
    one_thread()
    at_least(1, episodes=command.episodes)
    if not command.fps >= 0.1:
        raise UserError(f"--fps must be at least 0.1, got {command.fps}")
    with user_input():
        model, task, config = open_agent(command)
        name = steer(model, command)
        if command.gif is not None:
            _check_writable(command.gif)
        elif command.beside:
            raise ValueError("--beside needs --gif, a file to draw both policies into")
    mode = "rgb_array" if command.gif else "ansi"
    if isinstance(task, OwnTask):
        env = task.make(task.level)
        if env.render_mode != mode:
            raise UserError(f"--env {task.name} cannot be shown: let it return one with render_mode={mode!r}")
    elif command.gif is None and config["world"] in ONE_BY_ONE:
        raise UserError(f"the world {config['world']!r} cannot be shown as text; name a file with --gif")
    else:
        env = make_scalar_env(config, mode, test=True)
    if command.gif is None:

        def show(caption: str, last: bool) -> None:
            print(f"{name}, {caption}\n{env.render()}\n", flush=True)
            time.sleep((PAUSE if last else 1) / command.fps)

        _play(model, env, command, show)
        return
    shown = [_frames(model, env, command, name)]
    if command.beside:
        with model.steered():
            shown.append(_frames(model, env, command, "unsteered"))
    with user_input():
        write_bytes(command.gif, _animation(shown, command.fps))
    policies = name + ", unsteered" * command.beside
    print(f"Wrote {command.episodes} episodes (policy: {policies}) to {command.gif}")


def _frames(model: RoutedAlgorithm, env: gym.Env, command: Watch, name: str) -> list[list[tuple[np.ndarray, str]]]:
    """Play episodes, and return the images of each, with their captions."""
    episodes: list[list[tuple[np.ndarray, str]]] = [[]]

    def show(caption: str, last: bool) -> None:
        episodes[-1].append((env.render(), f"{name}\n{caption}"))
        if last:
            episodes.append([])

    _play(model, env, command, show)
    return episodes[:-1]


def _animation(shown: list[list[list[tuple[np.ndarray, str]]]], fps: float) -> bytes:
    """A GIF of policies side by side, each with a caption of two lines below.

    In an episode, the policy that ends first waits for the others.
    """
    font = ImageFont.load_default(TEXT)
    captions = [caption for policy in shown for episode in policy for _, caption in episode]
    height, across = shown[0][0][0][0].shape[:2]
    width = max(across, int(max(font.getlength(line) for caption in captions for line in caption.splitlines())) + TEXT)
    images, durations = [], []
    for episodes in zip(*shown, strict=True):
        steps = max(map(len, episodes))
        for step in range(steps):
            image = Image.new("RGB", (len(episodes) * (width + TEXT) - TEXT, height + 3 * TEXT), WHITE)
            for place, frames in enumerate(episodes):
                frame, caption = frames[min(step, len(frames) - 1)]
                left = place * (width + TEXT)
                image.paste(Image.fromarray(frame), (left + (width - across) // 2, 0))
                at = (left + TEXT // 2, height + TEXT // 3)
                ImageDraw.Draw(image).text(at, caption, fill=PLAYER, font=font)
            images.append(image)
            durations.append(round(1000 * (PAUSE if step == steps - 1 else 1) / fps))
    gif = io.BytesIO()
    images[0].save(gif, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return gif.getvalue()


def _check_writable(gif: Path) -> None:
    if gif.suffix.lower() != ".gif":
        raise ValueError(f"--gif must name a file ending in .gif, got {str(gif)!r}")
    if gif.is_dir() or not gif.parent.is_dir() or not os.access(gif.parent, os.W_OK):
        raise ValueError(f"--gif {str(gif)!r} cannot be written: its folder must exist and be writable")


def _play(model: RoutedAlgorithm, env: gym.Env, command: Watch, show: Callable[[str, bool], None]) -> None:
    """Play episodes. ``show`` is called after each step with a caption, and whether it was the last one."""
    torch.manual_seed(derive_seed(command.seed, "watch"))
    for episode in range(command.episodes):
        obs, _ = env.reset(seed=derive_seed(command.seed, "watch", episode))
        show(f"episode {episode + 1}", False)
        done, steps, info = False, 0, {}
        while not done:
            action, _ = model.predict(obs, deterministic=command.greedy)
            taken = int(np.asarray(action)) if isinstance(env.action_space, Discrete) else action
            obs, _, terminated, truncated, info = env.step(taken)
            done, steps = terminated or truncated, steps + 1
            show(f"episode {episode + 1}, step {steps}{_end(info) if done else ''}", done)


def _end(info: dict[str, Any]) -> str:
    outcome = info.get("outcome")  # a wrapper that cuts an episode knows none
    return (
        ": step limit reached"
        if outcome is None
        else f": {outcome}, {'overseen' if info['overseen'] else 'not overseen'}"
    )
