"""Prompts by a language model: against a server on this machine that says what it is told to."""

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tyro

from mnist_transformer.data.prompted import read_prompts
from mnist_transformer.prompting.prompts import Prompt
from mnist_transformer.utils.terminal import exit_code
from tools import write_prompts

SECRET = "sk-very-secret"
OUT = Path("x.jsonl")


def written(text, operation, operands, answer):
    return {"text": text, "operation": operation, "operands": operands, "answer": answer}


GOOD = [
    written("Show me 2 + four", "sum", [2, 4], 6),
    written("Could you do nine minus 3?", "difference", [9, 3], 6),
    written("Doodle a 7", "number", [7], 7),
    written("Quick, twice six!", "product", [2, 6], 12),
    written("I'd like 7 of these and 5 of those", "sum", [7, 5], 12),
]


def reply(*items, finish="stop"):
    message = {"role": "assistant", "content": json.dumps({"prompts": items})}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "stub"}
    return 200, json.dumps(body | {"choices": [choice]})


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(json.loads(body) | {"key": self.headers["Authorization"]})
        script = self.server.script
        status, content = script.pop(0) if len(script) > 1 else script[0]
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if content[0] == "<" else "application/json")
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """A server that answers with ``script``, in order; the last answer serves for ever."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(write_prompts.KEY_VARIABLE, SECRET)
    monkeypatch.setattr(write_prompts, "MAX_RETRIES", 1)
    monkeypatch.setattr(write_prompts, "MAX_FRUITLESS", 4)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.script, server.asked = [reply(*GOOD)], []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def run(stub):
    def run(n, *options):
        address = f"http://127.0.0.1:{stub.server_port}/v1"
        arguments = [str(n), "--out", str(OUT), "--model", "stub", "--base-url", address, *options]
        return exit_code("it", lambda: tyro.cli(write_prompts.main, args=arguments))

    return run


def test_right_prompts_are_kept_with_a_record(stub, run):
    assert run(5) == 0
    assert read_prompts(OUT)[0] == Prompt("Show me 2 + four", 6, "sum", (2, 4), "stub")
    record = json.loads(Path("x.runs.jsonl").read_text())
    assert record["model"] == "stub"
    assert record["counts"] == {"requests": 1, "kept": 5}
    assert "tools.write_prompts" in record["command"]
    assert stub.asked[0]["response_format"]["json_schema"]["strict"] is True
    assert stub.asked[0]["messages"][-1]["content"].count("answer") == 10


def test_wrong_prompts_and_replies_are_dropped_and_counted(stub, run, capsys):
    bad = {
        "wrong arithmetic": written("Show me 2 + 5", "sum", [2, 5], 8),
        "other numbers in the text": written("Show me 3 + 4", "sum", [2, 5], 7),
        "asks for something else": written("Take 5 from 7", "sum", [5, 7], 12),
        "empty or too long": written("Show me 2 + 5 " + "please " * 30, "sum", [2, 5], 7),
        "duplicate": written("SHOW me  2 + four.", "sum", [2, 4], 6),
    }
    out_of_range = written("Show me 60 + 70", "sum", [60, 70], 130)
    mixed = reply(GOOD[0], *bad.values(), out_of_range)
    unusable = [reply({"text": "7"}), reply(finish="length"), (200, '{"choices": [{"mess')]
    stub.script = [mixed, *unusable, reply(*GOOD)]
    assert run(5) == 0
    counts = json.loads(Path("x.runs.jsonl").read_text())["counts"]
    others = {"requests": 5, "kept": 5, "wrong arithmetic": 2, "duplicate": 2, "unusable reply": 3}
    assert counts == dict.fromkeys(bad, 1) | others
    assert "3 unusable reply" in capsys.readouterr().out


def test_the_same_command_resumes(stub, run, capsys):
    stub.script = [(429, "{}"), reply(*GOOD[:2]), (500, "{}")]
    assert run(5) == 2
    assert "failed: InternalServerError" in capsys.readouterr().err
    content = OUT.read_bytes()
    assert len(read_prompts(OUT)) == 2
    stub.script = [reply(*GOOD)]
    for torn in (b"", b'{"te', b'{"text": "Show'):
        OUT.write_bytes(content + torn)
        assert run(5) == 0
        assert OUT.read_bytes().startswith(content)
        assert len(read_prompts(OUT)) == 5
    stub.asked.clear()
    assert run(5) == 0
    assert not stub.asked
    assert run(6) == 2
    assert "wrote nothing new in 4 requests in a row" in capsys.readouterr().err


def test_the_key_goes_to_the_server_only(stub, run, caplog, capsys, monkeypatch):
    caplog.set_level(logging.DEBUG)
    for status in (401, 404):
        stub.script = [(status, json.dumps({"error": {"message": f"I know {SECRET}"}}))]
        assert run(5) == 2
    assert run(5, "--base-url", f"http://me:{SECRET}@127.0.0.1/v1") == 2
    assert {asked["key"] for asked in stub.asked} == {f"Bearer {SECRET}"}
    said = capsys.readouterr()
    assert "failed: AuthenticationError" in said.err
    files = "".join(path.read_text() for path in Path().iterdir())
    assert SECRET not in said.out + said.err + caplog.text + files
    monkeypatch.setenv(write_prompts.KEY_VARIABLE, " ")
    assert run(5) == 2
    assert "OPENAI_API_KEY holds no key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--per-request 0", "per_request is 0"),
        ("--base-url localhost:8080", "the base URL is not one"),
        ("--base-url http://127.0.0.1:1/v1", "failed: APIConnectionError"),
        ("--base-url http://127.0.0.1:x/v1", "the base URL is not one"),
        ("--model page", "failed: AttributeError"),
        ("--out missing/x.jsonl", "missing/x.jsonl: No such file"),
        ("--out foreign.jsonl", "line 1 of foreign.jsonl does not hold a prompt"),
        ("--out torn.jsonl", "line 1 of torn.jsonl does not hold a prompt"),
    ],
)
def test_a_mistake_is_one_sentence(stub, run, capsys, options, message):
    files = {"foreign.jsonl": '{"another": "thing"}\n', "torn.jsonl": "a shopping list"}
    for name, content in files.items():
        Path(name).write_text(content)
    stub.script = [(200, "<html>Welcome</html>")]
    assert run(5, *options.split()) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert {name: Path(name).read_text() for name in files} == files
