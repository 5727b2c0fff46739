"""``routed-rl demo``: a web page on this machine, to play with agents and results."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from routed_rl.errors import UserError, user_input
from routed_rl.experiments.demo.options import Demo
from routed_rl.extras import require
from routed_rl.runs.process import one_thread
from routed_rl.runs.studies import STUDY

LOOPBACK = "127.0.0.1"


def main(command: Demo) -> None:
    require("demo", "panel", "panel_material_ui")
    if not 0 <= command.port < 2**16:
        raise UserError(f"--port must be from 0 to 65535, got {command.port}")
    one_thread()
    from routed_rl.experiments.demo.agents import carried, is_agent, open_agents

    with user_input():
        for directory in command.directories:
            _check(directory, (directory / STUDY).is_file() or is_agent(directory))
        # From here on every directory has a name, also "." of the shell. A link keeps its own.
        directories = [Path(os.path.abspath(directory)) for directory in command.directories]
        studies = [directory for directory in directories if (directory / STUDY).is_file()]
        runs = [directory for directory in directories if directory not in studies]
        agents = [*open_agents(runs), *carried()]
    port = _free(command.port)
    import panel as pn

    from routed_rl.experiments.demo.page import make_page

    print(f"The demo is at http://{LOOPBACK}:{port}/ on this machine; stop it with Ctrl-C", flush=True)
    pn.serve(
        lambda: make_page(agents, studies), port=port, address=LOOPBACK, show=command.open, title="routed_rl demo",
        verbose=False, websocket_origin=[f"{host}:{port}" for host in (LOOPBACK, "localhost")],
    )  # fmt: skip


def _check(directory: Path, is_known: bool) -> None:
    if not directory.is_dir():
        raise ValueError(f"there is no folder {str(directory)!r}")
    if not is_known:
        raise ValueError(
            f"{os.fspath(directory)!r} is neither the run of an agent nor a study: name a directory that train, "
            "oversight, era, undo, arena or steering-scalar has made"
        )


def _free(port: int) -> int:
    """Return the port, or a free one for 0; UserError if another program uses it."""
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            place.bind((LOOPBACK, port))
        except OSError as error:
            raise UserError(
                f"the port {port} cannot be used ({error.strerror}): name another --port, or 0 for any free one"
            ) from None
        found: int = place.getsockname()[1]
        return found
