"""The web server of ``mmlocal explore``: its port, its end, and the hosts that its page may ask."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from mmlocal.errors import UsageError

# The browser asks no other host, whatever a release of Gradio puts into its pages.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "media-src 'self' blob:; worker-src 'self' blob:; base-uri 'self'; form-action 'self'"
)


def listen(host: str, port: int) -> socket.socket:
    """Take a port, before the model is built.

    Args:
        host: name or address.
        port: port; 0 for any free one.

    Returns:
        A bound socket.

    Raises:
        UsageError: the host is unknown, or the port is busy or forbidden.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UsageError(f"{host!r} is not an address of this machine: {error}", "host") from error
    listener = socket.socket(family)
    try:
        if os.name == "posix":  # a port that was in use a minute ago; elsewhere it has another use
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(f"{host!r} is not an address of this machine", "host") from error
        raise UsageError(
            f"{port} of {host} cannot be used: {error.strerror}; name another one, or 0 for any "
            "free one",
            "port",
        ) from error
    return listener


def serve(app: Callable, listener: socket.socket) -> None:
    """Serve an ASGI application until the process is interrupted.

    Args:
        app: the application.
        listener: bound socket.

    Raises:
        KeyboardInterrupt: the process got a signal to end.
        RuntimeError: the server ended by itself.
    """
    import uvicorn

    # Browsers keep a connection open, so the end must not wait for them.
    server = uvicorn.Server(
        uvicorn.Config(only_this_host(app), log_level="critical", timeout_graceful_shutdown=1)
    )
    ended = threading.Event()

    def run() -> None:
        try:
            server.run([listener])
        finally:
            ended.set()

    # In a thread of its own, which a network that still runs does not hold up.
    threading.Thread(target=run, daemon=True).start()
    try:
        while not ended.wait(1):  # a signal interrupts it on all systems
            pass
    finally:
        server.should_exit = True
        ended.wait(10)  # it takes less than a second, unless the machine is busy
    raise RuntimeError("the server of the page has ended by itself")


def only_this_host(app: Callable) -> Callable:
    """Wrap an ASGI application, so that it tells browsers to ask no other host.

    Args:
        app: the application.
    """

    async def with_policy(scope: Any, receive: Any, send: Any) -> None:
        async def send_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", POLICY.encode())
                message = {**message, "headers": [*message.get("headers", ()), policy]}
            await send(message)

        await app(scope, receive, send_policy)

    return with_policy
