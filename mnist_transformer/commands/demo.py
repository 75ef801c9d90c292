"""demo."""

import errno
import gc
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from tempfile import TemporaryDirectory

from mnist_transformer.utils.files import short_name
from mnist_transformer.utils.terminal import complain

LOADING = """<!doctype html><title>MNIST Transformer</title>
<body style="font-family: system-ui, sans-serif; margin: 3em"><h1>MNIST Transformer</h1>
<p>The models are loading. This page shows them in a few seconds.</p><script>
setInterval(() => fetch("/").then(answer => answer.ok && location.reload()).catch(() => 0), 300)
</script>"""


def demo(models: tuple[str, ...] = (), host: str = "127.0.0.1", port: int = 7860) -> None:
    """Show the models in the browser: draw digits, erase and restore them. Ctrl-C ends it.

    Args:
        models: The models to show, named as for draw's --model; by default all shipped ones that
            draw, the best one first.
        host: The address to serve at; only this machine can reach the default.
        port: Up to 65535; 0 takes any free one.
    """
    waiting = _answer_while_loading(host, port)
    port = waiting.server_port
    complain(f"loading the models; {host}:{port} answers, and will show the page")
    from mnist_transformer.evaluation import ledger, tables
    from mnist_transformer.models import loading

    if not models:  # the best one first, those without a figure last
        found = {name: tables.distance(row) for name, row in ledger.latest().items()}
        models = tuple(sorted(loading.shipped(), key=lambda name: found.get(name, float("inf"))))
    # By their last part: visitors need not know this machine's folders.
    paths = {short_name(model): loading.find_weights(model) for model in models}
    if len(paths) < len(models):
        raise ValueError(f"models are {' '.join(models)}, expected distinct names")
    # Another user may own gradio's default folder. A drawing may arrive during the clean-up.
    with TemporaryDirectory(prefix="gradio-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing is fetched or reported
        # gradio checks that its own server answers, which must not go through a proxy.
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = "*"
        gc.disable()  # a fifth of the time of this import
        try:
            import gradio  # noqa: F401
        except ModuleNotFoundError:
            raise ValueError("demo needs gradio: pip install 'mnist-transformer[web]'") from None
        finally:
            gc.enable()
        from mnist_transformer.web import app

        signal.signal(signal.SIGTERM, signal.default_int_handler)  # which tidies up
        app.launch(paths, host, port, waiting).block_thread()


class _Loading(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(LOADING.encode())

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""


def _answer_while_loading(host: str, port: int) -> ThreadingHTTPServer:
    """Serve ``LOADING`` in a thread; ValueError if there cannot be a server."""
    if not 0 <= port <= 65535:
        raise ValueError(f"port is {port}, expected 0 to 65535")
    try:
        server = ThreadingHTTPServer((host, port), _Loading)
    except OSError as error:
        taken = f"port {port} is taken: name another with --port"
        other = f"cannot serve at {host}:{port}: {error.strerror}"
        raise ValueError(taken if error.errno == errno.EADDRINUSE else other) from error
    threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    return server
