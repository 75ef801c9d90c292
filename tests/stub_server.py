"""A server that answers chat completions as it is told to, and prompts for it to write."""

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def written(text: str, operation: str, operands: list[int], answer: int) -> dict:
    return {"text": text, "operation": operation, "operands": operands, "answer": answer}


GOOD = [
    written("Show me 2 + four", "sum", [2, 4], 6),
    written("Could you do nine minus 3?", "difference", [9, 3], 6),
    written("Doodle a 7", "number", [7], 7),
    written("Quick, twice six!", "product", [2, 6], 12),
    written("I'd like 7 of these and 5 of those, all at once", "sum", [7, 5], 12),
]


def reply(*items: object, finish: str = "stop", content: str | None = None) -> tuple:
    text = json.dumps({"prompts": items}) if content is None else content
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "stub"}
    return 200, {}, json.dumps(body | {"choices": [choice]})


def fault(status: int, said: str = "no", code: str | None = None, **headers: str) -> tuple:
    return status, headers, json.dumps({"error": {"message": said, "code": code}})


class Stub(ThreadingHTTPServer):
    """Answers requests with ``script``, in order, and then with ``last`` for ever."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.script: list = []
        self.last: tuple = fault(500)
        self.asked: list[dict] = []

    def handle_error(self, *_: object) -> None:
        """A client gave up waiting; said aloud, that would spoil what is captured."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Answer(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(json.loads(body))
        script = self.server.script
        status, headers, content = script.pop(0) if script else self.server.last
        if self.path != "/v1/chat/completions":
            status, headers, content = fault(404, "no such page")
        time.sleep(float(headers.get("sleep", 0)))
        self.send_response(status)
        self.send_header("Content-Type", headers.get("type", "application/json"))
        for name in headers.keys() - {"sleep", "type"}:
            self.send_header(name.replace("_", "-"), headers[name])
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_: object) -> None:
        pass
