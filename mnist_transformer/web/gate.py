"""The gate before gradio: only the page's own requests, pictures and listening visitors pass.

A visitor joins the queue with one request, and follows the drawing with another that stays open.
"""

import asyncio
import json
import re
import time
from collections import Counter
from contextlib import suppress
from io import BytesIO

import gradio as gr
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mnist_transformer.utils.images import FORMATS, MAX_PIXELS
from mnist_transformer.utils.terminal import complain

ROUTES = re.compile(
    "/|/config|/theme.css|/favicon.ico|/manifest.json|/assets/.*|/static/.*|/gradio_api/(info|upload"
    "|upload_progress|file=.*|component_server/?|queue/join|queue/data|run/.*|cancel|reset"
    "|heartbeat/.*|startup-events)"
)
MAX_FILES, MAX_BYTES = 4, 10_000_000  # of one request
MAX_PAD_PIXELS = 4_000_000  # a browser may send several pixels for one of the pad's
KEEP_SECONDS, MAX_KEPT = 300, 500_000_000  # how long uploads are kept, and bytes of them all
SILENT_SECONDS = 5  # a visitor who does not listen by then has left


class Gate:
    """Middleware around the application that serves a page."""

    def __init__(self, app: ASGIApp, page: gr.Blocks) -> None:
        self.app, self.page = app, page
        self.listening = Counter[str]()  # open requests of each session
        self.uploads: list[tuple[float, int]] = []  # time and bytes of those that are kept

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif not ROUTES.fullmatch(scope["path"]):
            await JSONResponse({"detail": "not found"}, 404)(scope, receive, send)
        else:
            try:
                await self._serve(Request(scope, receive), send)
            except Exception as error:  # noqa: BLE001 - gradio raises many kinds
                reason = str(error).partition("\n")[0] or type(error).__name__
                complain(f"{scope['path']}: {reason}")
                refusal = JSONResponse({"detail": f"the request is refused: {reason}"}, 400)
                with suppress(RuntimeError):  # if the answer has begun
                    await refusal(scope, receive, send)

    async def _serve(self, request: Request, send: Send) -> None:
        scope, receive, path = request.scope, request.receive, request.url.path
        if path.endswith("/queue/data"):
            session = request.query_params.get("session_hash", "")
            self.listening[session] += 1
            try:
                return await self.app(scope, receive, send)
            finally:
                self.listening -= Counter([session])  # which drops a count of 0
        length = request.headers.get("content-length", 0)
        if "transfer-encoding" in request.headers or int(length) > MAX_BYTES:
            raise ValueError(f"it has over {MAX_BYTES:,} bytes or no stated length")
        body = await request.body()
        if "multipart" in request.headers.get("content-type", ""):
            await self._check_upload(request, len(body))
        parts: list[Message] = [{"type": "http.request", "body": body}]

        async def receive_again() -> Message:  # the body once more, and then what follows it
            return parts.pop() if parts else await receive()

        await self.app(scope, receive_again, send)
        if path.endswith("/queue/join"):
            await self._watch(json.loads(body)["session_hash"])

    async def _check_upload(self, request: Request, num_bytes: int) -> None:
        now = time.monotonic()
        self.uploads = [x for x in self.uploads if now - x[0] < KEEP_SECONDS] + [(now, num_bytes)]
        if sum(size for _, size in self.uploads) > MAX_KEPT:
            raise ValueError("there are too many uploads, try again in a few minutes")
        form = await request.form(max_files=MAX_FILES)
        if not re.fullmatch(r"\d?|null", str(form.get("index", ""))):
            raise ValueError("it has more layers than the pad")
        limit = MAX_PIXELS if request.url.path.endswith("/upload") else MAX_PAD_PIXELS
        for _, file in form.multi_items():
            if isinstance(file, UploadFile):
                try:
                    width, height = Image.open(BytesIO(await file.read()), formats=FORMATS).size
                    is_large = width * height > limit
                except Image.DecompressionBombError:
                    is_large = True
                except Exception as error:  # Pillow raises many kinds
                    expected = "expected a PNG or JPEG file"
                    raise ValueError(f"{file.filename} is not a picture, {expected}") from error
                if is_large:
                    raise ValueError(f"{file.filename} has over {limit:,} pixels, expected fewer")

    async def _watch(self, session: str) -> None:
        """Drop the jobs of a visitor who joined the queue and does not listen."""
        for _ in range(10 * SILENT_SECONDS):
            await asyncio.sleep(0.1)
            if session in self.listening:
                return
        await self.page._queue.clean_events(session_hash=session)
