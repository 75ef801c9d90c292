"""demo."""

import errno
import os
import socket

from mnist_transformer.terminal import say


def demo(host: str = "127.0.0.1", port: int = 7860) -> None:
    """Show the models in the browser: draw digits, erase and restore them. Ctrl-C ends it.

    Args:
        host: The address to serve at; the default one is seen by this machine only.
        port: From 1 to 65535.
    """
    _check_free(host, port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing is fetched or reported
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError("demo needs gradio: pip install 'mnist-transformer[web]'") from None
    from mnist_transformer.web import app

    page = app.build()
    say(f"the demo is at http://{host}:{port} (Ctrl-C ends it)")
    app.launch(page, host, port)


def _check_free(host: str, port: int) -> None:
    if not 1 <= port <= 65535:
        raise ValueError(f"port is {port}, expected 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ValueError(f"port {port} is taken: name another with --port") from error
            raise ValueError(f"cannot serve at {host}:{port}: {error.strerror}") from error
