"""Starts the app's server."""

import contextlib
import errno
import socket
from pathlib import Path

from ..engine.errors import UserError
from .inputs import Limits
from .models import ShownModel, serve_models

__all__ = ["PAGE", "free_port", "serve"]

PAGE = Path(__file__).with_name("page") / "mrcnn_ext_app.py"
_FIRST_PORT, _PORTS = 8501, 50
_EVERYWHERE = ("0.0.0.0", "::", "")


def serve(models: list[ShownModel], host: str = "localhost", port: int = 0) -> None:
    """Shows models in the browser until it is stopped (Ctrl-C, SIGTERM). Nothing is asked of other machines.

    Args:
        models: one, or two side by side.
        host: address that is listened at; others than localhost are reached by other machines.
        port: 0 for the first free one from 8501 on.

    Raises:
        UserError: the port is taken, or the host is none of this machine's.
    """
    from streamlit.web import cli

    port = free_port(host, port)
    serve_models(models)
    options = {
        "server.address": host,
        "server.port": port,
        # Without it Streamlit asks a web service for the machine's public address.
        "browser.serverAddress": "localhost" if host in _EVERYWHERE else host,
        "browser.gatherUsageStats": "false",
        "server.headless": "true",  # no question for an e-mail address
        "server.fileWatcherType": "none",
        "server.maxUploadSize": Limits().video_bytes // 2**20,
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",  # they go to the terminal
        "theme.base": "light",
        "theme.primaryColor": "#1f6feb",
    }
    flags = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    cli.main(["run", str(PAGE), *flags], prog_name="mrcnn-ext app", standalone_mode=False)


def free_port(host: str, port: int) -> int:
    """``port`` if it is free, or for 0 the first free one from 8501 on.

    Raises:
        UserError: there is none.
    """
    tried = [port] if port else list(range(_FIRST_PORT, _FIRST_PORT + _PORTS))
    for candidate in tried:
        problem = _problem(host, candidate)
        if problem is None:
            return candidate
        if isinstance(problem, socket.gaierror) or problem.errno == errno.EADDRNOTAVAIL:
            raise UserError(f"--host {host}: this machine has no such address ({problem.strerror})")
    which = f"--port {port}: it is" if port else f"ports {tried[0]} to {tried[-1]} are"
    raise UserError(f"{which} in use or not allowed at {host} ({problem.strerror}): give another --port")


def _problem(host, port) -> OSError | None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with contextlib.closing(socket.socket(family, kind, protocol)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error
    return None
