"""The training loop: it learns, and neither kills, bad numbers nor a full disk undo its work."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from io import BytesIO
from types import SimpleNamespace

import pytest
import torch
from helpers import BARS as DATASET
from helpers import (
    BRIGHT_BARS,
    RECIPE,
    VQVAE_RECIPE,
    Killed,
    assert_same_bits,
    kill_at,
    make_bars,
    make_spec,
    moved,
    weights,
)
from PIL import Image

from mnist_transformer.models import checkpoint, loading
from mnist_transformer.models.patch.model import Patch
from mnist_transformer.training import log as runlog
from mnist_transformer.training import loop as training
from mnist_transformer.training import records as recording
from mnist_transformer.training import runtime
from mnist_transformer.training import state as resume
from mnist_transformer.training.info import read_info
from mnist_transformer.training.loop import train
from mnist_transformer.utils import trees

TINY = RECIPE.model


def go(out, recipe=RECIPE, **options):
    """Train on the bars and the CPU; the path of the weights, and the messages."""
    messages = []
    usual = {"data": DATASET, "device": "cpu", "report": lambda r: messages.append(r.message or "")}
    return train(recipe, out, **usual | options), messages


def go_and_die(out, monkeypatch, step):
    with monkeypatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(Killed):
            go(out)


def assert_same_weights(path, whole):
    assert_same_bits(weights(path), weights(whole[0] / "model.safetensors"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run from end to end, and what it reported."""
    out, records = tmp_path_factory.mktemp("whole"), []
    go(out, report=records.append)
    return out, records


def test_a_run_leaves_all_its_files(whole):
    out, records = whole
    info = read_info(out / "model.safetensors")
    assert (info.recipe, info.dataset, info.seed) == ("tiny", "mnist", 0)
    assert (info.images_seen, info.steps) == (40, 5)
    assert info.validation_bits_per_dim > 0
    last = runlog.read_metrics(out / "metrics.jsonl")[-1]
    assert last["kind"] == "validation"
    assert last["num_images"] == 6
    assert round(last["bits_per_dim"], 6) == info.validation_bits_per_dim
    assert info.curve[-1] == (last["seconds"], 40, round(last["bits_per_dim"], 5))
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert list((out / "tensorboard").glob("events.*"))
    assert records[-1].progress == 1
    assert records[-1].images == 40
    assert records[-1].bits_per_dim == last["bits_per_dim"]
    # Without built-in guidance the objective is the likelihood.
    assert last["loss"] == pytest.approx(last["bits_per_dim"] * 64 * 0.6931472)


def test_a_finished_run_says_so(whole):
    out = whole[0]
    before = (out / "model.safetensors").stat().st_mtime_ns
    path, messages = go(out)
    assert path == out / "model.safetensors"
    assert path.stat().st_mtime_ns == before
    assert len(messages) == 1
    assert "finished" in messages[0]


def test_damaged_weights_of_a_finished_run_are_written_again(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    path = tmp_path / "run" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert f"finished: {path}" in go(tmp_path / "run")[1]
    assert_same_weights(path, whole)


def test_a_run_killed_at_its_last_pictures_has_its_weights(tmp_path, monkeypatch):
    def killed(*_):
        raise Killed

    monkeypatch.setattr(recording.Records, "redraw", killed)
    with pytest.raises(Killed):
        go(tmp_path)
    assert read_info(tmp_path / "model.safetensors").validation_bits_per_dim > 0


def test_samples_take_a_limited_part_of_a_run(tmp_path, monkeypatch):
    """Where the time is over, the canvas so far is saved and drawing stops."""
    drawn, redraw = [], recording.Records.redraw
    monkeypatch.setattr(recording, "MAX_CLASSES", 2)

    def steps(model, labels, seeds):
        assert labels.tolist() == [0, 1] * 8
        for number in range(3):
            drawn.append(number)
            yield torch.zeros(len(labels), *model.image_shape, dtype=torch.uint8)

    monkeypatch.setattr(Patch, "steps", steps)
    monkeypatch.setattr(recording.Records, "redraw", lambda records, *_: redraw(records, -1.0))
    go(tmp_path)
    assert set(drawn) == {0}
    assert (tmp_path / "samples.png").exists()


def test_validation_measures_the_objective_of_training():
    """And the likelihood, which is another figure of a model with guidance built in."""
    val = DATASET.val
    for guidance in (1.0, 1.7):
        model = moved(replace(TINY, class_drop=0.0, built_in_guidance=guidance))
        found = runlog.validate(model, val, seed=0)
        with torch.no_grad():
            objective = model.train().loss(val.images, val.labels).mean().item()
        assert found["loss"] == pytest.approx(objective)
        bits = pytest.approx(objective / 64 / 0.6931472)
        assert (found["bits_per_dim"] == bits) == (guidance == 1)
        assert runlog.in_words(found) == f"{found['bits_per_dim']:.4f} bits/dim on 6 images"


def test_the_plot_has_a_row_of_panels_for_each_quantity():
    place = {"seconds": 60.0, "images": 1000}
    train_line = {"kind": "train", **place, "loss": 2.0}
    val_line = {"kind": "validation", **place, "loss": None, "bits_per_dim": 0.6}
    for lines, height in [([train_line], 400), ([val_line], 400), ([train_line, val_line], 800)]:
        assert Image.open(BytesIO(runlog.plot_losses(lines))).size == (1000, height)


def test_overfits_one_batch(tmp_path):
    config = replace(TINY, class_drop=0.0)
    recipe = replace(RECIPE, model=config, epochs=120, ema=0.0, adamw_lr=1e-2)
    few = replace(DATASET, train=DATASET.train.part(0, 8))
    model = checkpoint.load(go(tmp_path, recipe, data=few)[0])
    with torch.inference_mode():
        nats = model.nll(few.train.images, few.train.labels).mean()
    # Eight images need no more than ln 8 = 2.1 nats each.
    assert nats < 4


def test_killed_and_resumed_is_bit_identical(whole, tmp_path, monkeypatch):
    go_and_die(tmp_path, monkeypatch, step=3)
    assert not (tmp_path / "model.safetensors").exists()
    path, messages = go(tmp_path)
    assert "resuming from step 3" in messages
    assert_same_weights(path, whole)


def test_a_damaged_state_falls_back_to_the_one_before(whole, tmp_path, monkeypatch):
    go_and_die(tmp_path, monkeypatch, step=4)
    newest, _ = resume.find_states(tmp_path)
    newest.write_bytes(newest.read_bytes()[:-10])
    path, messages = go(tmp_path)
    assert any(newest.name in m and "trying the state before" in m for m in messages)
    assert "resuming from step 3" in messages
    assert_same_weights(path, whole)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tree: tree.pop("run"),
        lambda tree: tree.update(run=3),
        lambda tree: tree.pop("model"),
        lambda tree: tree["model"].pop("classes.table.weight"),
        lambda tree: tree.update(step="x"),
        lambda tree: tree.update(seconds=None),
        lambda tree: tree.update(ema=None),
        lambda tree: tree.update(optimizers=[]),
        lambda tree: tree["optimizers"][0]["0"].pop("momentum_buffer"),
        lambda tree: tree["optimizers"][0].update({"999": tree["optimizers"][0]["0"]}),
        lambda tree: tree["optimizers"][1]["0"].update(exp_avg=torch.zeros(3)),
    ],
)
def test_whatever_makes_a_state_unusable_falls_back_too(whole, tmp_path, monkeypatch, spoil):
    go_and_die(tmp_path, monkeypatch, step=4)
    newest, _ = resume.find_states(tmp_path)
    tree = trees.load_state(newest)
    spoil(tree)
    trees.save_state(newest, tree)
    path, messages = go(tmp_path)
    assert any(newest.name in m and "trying the state before" in m for m in messages)
    assert "resuming from step 3" in messages
    assert_same_weights(path, whole)


def test_a_bit_flipped_anywhere_in_a_state_is_noticed(tmp_path, monkeypatch):
    go_and_die(tmp_path, monkeypatch, step=2)
    newest = resume.find_states(tmp_path)[0]
    content = newest.read_bytes()
    for place in [*range(0, 4000, 13), *range(4000, len(content), 1999)]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        newest.write_bytes(flipped)
        with pytest.raises(ValueError, match=newest.name):
            trees.load_state(newest)


def test_nothing_to_fall_back_to(whole, tmp_path):
    (tmp_path / "state-000000003.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"none of the 1 states .* can be read, expected"):
        go(tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"recipe": replace(RECIPE, clip=2.0)}, "clip 1.0 and not 2.0"),
        ({"recipe": replace(RECIPE, model=replace(TINY, dim=8))}, "model.dim 16 and not 8"),
        ({"seed": 1}, "seed 0 and not 1"),
        ({"batch_size": 4}, "batch_size 8 and not 4"),
        ({"data": make_bars(24)}, "num_train 20 and not 24"),
    ],
)
def test_another_runs_folder_is_refused(whole, changes, named):
    with pytest.raises(ValueError, match=f"holds another run, with {named}"):
        go(whole[0], **changes)


def test_a_state_with_an_option_that_has_gone_resumes_if_it_was_off(tmp_path, monkeypatch):
    go_and_die(tmp_path, monkeypatch, step=2)

    def note(passes: int) -> None:
        for path in resume.find_states(tmp_path):
            tree = trees.load_state(path)
            tree["run"]["model.passes"] = passes
            trees.save_state(path, tree)

    note(2)
    with pytest.raises(ValueError, match=r"with model\.passes 2 and not 1"):
        go(tmp_path)
    note(1)
    go(tmp_path, epochs=1)


def test_a_state_from_before_the_interval_was_a_choice_goes_on(tmp_path, monkeypatch):
    go_and_die(tmp_path, monkeypatch, step=2)
    for path in resume.find_states(tmp_path):
        tree = trees.load_state(path)
        assert tree["run"].pop("muon_interval") == 4
        trees.save_state(path, tree)
    with pytest.raises(ValueError, match="with muon_interval 4 and not 1"):
        go(tmp_path, replace(RECIPE, muon_interval=1))
    go(tmp_path, epochs=1)


def test_weights_without_a_state_are_not_overwritten(whole, tmp_path):
    checkpoint.save(TINY.build(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="exists without a state"):
        go(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"epochs": 1, "max_seconds": 9}, "expected exactly one"),
        ({"epochs": 0}, "epochs is 0, expected"),
        ({"max_seconds": float("nan")}, "max_seconds is nan, expected"),
        ({"max_seconds": 1e16}, r"max_seconds is 1e\+16, expected a number above 0 and at most"),
        ({"seed": 2**53}, "seed is 9007199254740992, expected an integer from 0 to"),
        ({"batch_size": 0}, "batch_size is 0, expected"),
        ({"batch_size": 21, "device": "cpu"}, "batch_size is 21, expected at most the 20 training"),
        ({"device": "meta"}, "device is 'meta', expected"),
        ({"lr": -1.0}, "adamw_lr is -1.0, expected"),
        ({"seed": -1}, "seed is -1, expected"),
        ({"device": "abacus"}, "device is 'abacus', expected"),
    ],
)
def test_senseless_arguments(tmp_path, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        go(tmp_path, **{"device": None, **arguments})
    with pytest.raises(ValueError, match="muon_interval is 0, expected"):
        replace(RECIPE, muon_interval=0)


def test_images_of_another_size_are_refused(tmp_path):
    recipe = replace(RECIPE, model=replace(TINY, data=make_spec(12, 3, levels=4)))
    with pytest.raises(
        ValueError, match=r"images are \(1, 8, 8\), the model expects \(1, 12, 12\)"
    ):
        go(tmp_path, recipe)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_skipped(tmp_path, monkeypatch, bad):
    backward = training._Run.backward
    seen = {}

    def spoiled(self):
        loss, state = backward(self), self.state
        if state.step in (2, 3):
            seen[state.step] = [p.detach().clone() for p in state.model.parameters()]
        if state.step == 2:
            torch._foreach_mul_([p.grad for p in state.model.parameters()], bad)
            return loss * bad
        return loss

    monkeypatch.setattr(training._Run, "backward", spoiled)
    path, messages = go(tmp_path)
    assert any(m.startswith(f"step 2 skipped: loss {bad}") for m in messages)
    assert all(torch.equal(a, b) for a, b in zip(seen[2], seen[3], strict=True))
    assert all(tensor.isfinite().all() for tensor in weights(path).values())


def test_a_run_that_diverges_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "MAX_SKIPPED", 2)
    monkeypatch.setattr(
        Patch, "loss", lambda self, images, cond: self.classes.table.weight.sum() * torch.nan
    )
    with pytest.raises(ValueError, match="no finite loss and gradient in 2 steps, expected"):
        go(tmp_path)


def test_a_full_disk_keeps_the_last_state_and_the_run_going(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    write, states = trees.write_atomic, []

    def full_from_step_2(path, content):
        if path.name.startswith("state-"):
            if states:
                raise OSError(errno.ENOSPC, "No space left on device")
            states.append(path)
        write(path, content)

    monkeypatch.setattr(trees, "write_atomic", full_from_step_2)
    path, messages = go(tmp_path)
    assert any("the one before is kept" in m and "No space left" in m for m in messages)
    assert resume.find_states(tmp_path) == states
    assert trees.load_state(states[0])["step"] == 1
    assert_same_weights(path, whole)


@pytest.mark.parametrize("room", [1, 2, 3])
def test_on_a_full_disk_the_newest_states_are_kept(whole, tmp_path, monkeypatch, room):
    """Room for so many states and the file being written; then a finished run says so."""
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    write, sizes = trees.write_atomic, []

    def left():
        used = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
        return max(sizes) * (room + 0.1) - used

    def write_if_there_is_room(path, content):
        sizes.append(len(content))
        if left() < len(content):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(trees, "write_atomic", write_if_there_is_room)
    monkeypatch.setattr(resume.shutil, "disk_usage", lambda folder: SimpleNamespace(free=left()))
    path, messages = go(tmp_path)
    assert not any("could not save" in message for message in messages)
    assert_same_weights(path, whole)
    if room > 1:
        assert resume.find_states(tmp_path)[0].name == "state-000000005.safetensors"
    for state in resume.find_states(tmp_path):  # as if none had fitted
        state.unlink()
    assert go(tmp_path)[1] == [f"this run is finished: {path}"]
    with pytest.raises(ValueError, match="exists without a state"):
        go(tmp_path, seed=1)
    with pytest.raises(ValueError, match="exists without a state"):
        go(tmp_path, epochs=3)


def test_a_second_run_in_a_folder_is_refused(whole, tmp_path, monkeypatch):
    backward, seen = training._Run.backward, []

    def joined(self):
        if self.state.step == 1:
            with pytest.raises(ValueError, match=f"{tmp_path} is in use by another run, expected"):
                go(tmp_path, replace(RECIPE, clip=2.0))
            seen.append(self)
        return backward(self)

    (tmp_path / ".lock").touch()  # as a run leaves it that was killed
    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "backward", joined)
        path, _ = go(tmp_path)
    assert seen
    assert_same_weights(path, whole)
    assert "finished" in go(tmp_path)[1][0]


def test_the_system_ends_the_lock_of_a_killed_process(tmp_path):
    script = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire()"
    command = [
        sys.executable,
        "-c",
        script + "; print(flush=True); input()",
        str(tmp_path / ".lock"),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(ValueError, match="in use"):
            runtime.claim(tmp_path)
        holder.kill()
    with runtime.claim(tmp_path):
        pass


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("fate", ["deleted", "renamed", "a file"])
def test_a_folder_that_goes_away_costs_no_weights(whole, tmp_path, monkeypatch, fate):
    backward, out = training._Run.backward, tmp_path / "run"

    def gone(self):
        if self.state.step == 4:
            out.rename(tmp_path / "elsewhere")
            if fate == "deleted":
                shutil.rmtree(tmp_path / "elsewhere")
            if fate == "a file":
                out.touch()
        return backward(self)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(training._Run, "backward", gone)
    path, messages = go(out)
    assert (path == out / "model.safetensors") == (fate != "a file")
    assert f"finished: {path}" in messages
    assert_same_weights(path, whole)


def test_no_record_fails_a_run(whole, tmp_path, monkeypatch):
    def broken(*args, **options):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(recording, "plot_losses", broken)
    monkeypatch.setattr(runtime.Accelerator, "log", broken)
    monkeypatch.setattr(runtime.Accelerator, "end_training", broken)
    path, messages = go(tmp_path)
    assert any("could not write the records" in message for message in messages)
    assert_same_weights(path, whole)
    path, _ = go(tmp_path / "hung-up", report=broken)
    assert_same_weights(path, whole)


def test_too_little_memory_and_a_lost_process_are_a_sentence(tmp_path, monkeypatch):
    def failing(self):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nand more")

    monkeypatch.setattr(training._Run, "backward", failing)
    with pytest.raises(ValueError, match=r"or batch_size 8 is too large .*memory: you tried"):
        go(tmp_path)


def test_what_a_killed_run_had_half_written_is_deleted(tmp_path):
    for name in ("state-000000005.safetensors", "loss.png", "metrics.jsonl"):
        (tmp_path / f".{name}.123").touch()
        (tmp_path / name).touch()
    resume.drop_leftovers(tmp_path)
    left = ["loss.png", "metrics.jsonl", "state-000000005.safetensors"]
    assert sorted(p.name for p in tmp_path.iterdir()) == left


def test_two_states_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    go(tmp_path)
    assert [p.name for p in resume.find_states(tmp_path)] == [
        "state-000000005.safetensors",
        "state-000000004.safetensors",
    ]


@pytest.mark.parametrize(
    ("number", "raised"),
    [
        (signal.SIGINT, KeyboardInterrupt),
        (signal.SIGTERM, SystemExit),
        (getattr(signal, "SIGHUP", signal.SIGTERM), SystemExit),
    ],
)
def test_signals_finish_the_step_and_save(whole, tmp_path, monkeypatch, number, raised):
    backward = training._Run.backward

    def interrupted(self):
        if self.state.step == 2:
            os.kill(os.getpid(), number)
        return backward(self)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    messages = []
    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "backward", interrupted)
        with pytest.raises(raised):
            go(tmp_path, report=lambda r: messages.append(r.message))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert "stopped at step 3; the same command resumes from there" in messages
    path = go(tmp_path)[0]
    assert_same_weights(path, whole)


def test_length_in_seconds(tmp_path):
    records = []
    began = time.monotonic()
    go(tmp_path, max_seconds=1, report=records.append)
    assert 1 <= records[-1].seconds <= time.monotonic() - began
    assert records[-1].progress == 1


def test_the_callers_randomness_is_left_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    go(tmp_path, epochs=0.5)
    assert torch.equal(torch.rand(1), expected)


def test_lines_about_steps_that_are_made_again_are_dropped(tmp_path):
    place = {"kind": "train", "images": 8, "seconds": 1.0}
    lines = [json.dumps({**place, "step": step}) for step in (1, 2, 3)]
    odd = ["[" * 99_999, "7", '{"step": 1}']
    (tmp_path / "metrics.jsonl").write_text("\n".join([*odd, *lines]) + '\n{"kind": "tr')
    kept = [x for x in runlog.read_metrics(tmp_path / "metrics.jsonl") if x["step"] <= 2]
    assert [x["step"] for x in kept] == [1, 2]


@pytest.mark.skipif(not hasattr(signal, "SIGCONT"), reason="no job control here")
def test_a_pause_is_no_part_of_the_run(tmp_path, monkeypatch):
    backward, records, paused = training._Run.backward, [], 0

    def pausing(self):
        nonlocal paused
        if self.state.step == 2:
            paused = 3600  # as if the process had been stopped for an hour
            os.kill(os.getpid(), signal.SIGCONT)
        return backward(self)

    def clock():
        return time.monotonic() + paused

    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "backward", pausing)
        go(tmp_path, report=records.append, clock=clock)
    assert 0 < records[-1].seconds < 600


def test_a_run_may_be_made_longer_on_its_way(tmp_path):
    go(tmp_path, epochs=1)
    path, messages = go(tmp_path)
    assert "resuming from step 3" in messages
    assert read_info(path).steps == 5


def test_compiling_takes_no_time_of_the_run(whole, tmp_path, monkeypatch):
    waited, records = 0, []

    def compile_in_an_hour(model):
        nonlocal waited
        waited = 3600

    def clock():
        return time.monotonic() + waited

    monkeypatch.setattr(Patch, "compile", compile_in_an_hour)
    recipe = replace(RECIPE, compile=True)
    path, _ = go(tmp_path, recipe, report=records.append, clock=clock)
    assert waited
    assert records[-1].seconds < 600
    assert_same_weights(path, whole)


@pytest.mark.parametrize(("recipe", "data"), [(VQVAE_RECIPE, BRIGHT_BARS), (RECIPE, DATASET)])
def test_a_compiled_run_is_the_same_run(tmp_path, monkeypatch, recipe, data):
    """Also of a model whose loss changes its buffers; torch's own kernels, as others round."""
    plain, _ = go(tmp_path / "plain", recipe, data=data)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    with torch._dynamo.config.patch(disable=False):
        path, _ = go(tmp_path / "compiled", replace(recipe, compile=True), data=data)
    assert_same_bits(weights(path), weights(plain))
    _, messages = go(tmp_path / "compiled", recipe, data=data)
    assert "finished" in messages[0]


def test_without_a_compiler_a_run_is_slower_and_the_same(whole, tmp_path, monkeypatch):
    def broken(function):
        def compiled(*arguments):
            raise RuntimeError("No working C++ compiler found\nand much more")

        return compiled

    monkeypatch.setattr(torch, "compile", broken)
    path, messages = go(tmp_path, replace(RECIPE, compile=True))
    assert "not compiled, so training is slower: No working C++ compiler found" in messages
    assert_same_weights(path, whole)


def test_labels_outside_the_classes_are_refused(tmp_path):
    shifted = DATASET.map(lambda name, split: replace(split, labels=split.labels + 1))
    with pytest.raises(ValueError, match="label 3 is unknown, expected 0 to 2"):
        train(RECIPE, tmp_path, data=shifted)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GRADIENT_ACCUMULATION_STEPS", "4"),
        ("USE_DEEPSPEED", "true"),
        ("USE_FSDP", "true"),
        ("USE_MEGATRON_LM", "true"),
        ("USE_PARALLELISM_CONFIG", "true"),
        ("USE_SAGEMAKER", "true"),
        ("DYNAMO_BACKEND", "inductor"),
        ("MIXED_PRECISION", "fp16"),
    ],
)
def test_what_a_launcher_left_behind_changes_nothing(tmp_path, monkeypatch, name, value):
    plain = runtime.make_accelerator(tmp_path, "cpu")
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    found = runtime.make_accelerator(tmp_path, "cpu")
    for part in ("gradient_accumulation_steps", "distributed_type", "mixed_precision"):
        assert getattr(found, part) == getattr(plain, part)
    assert found.state.dynamo_plugin == plain.state.dynamo_plugin
    assert os.environ[f"ACCELERATE_{name}"] == value


def test_a_device_that_a_launcher_left_behind_is_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")
    with pytest.raises(ValueError, match="device is 'meta', expected one that is here"):
        runtime.make_accelerator(tmp_path, None)


def test_unusual_defaults_of_torch_are_refused(tmp_path, tiny_checkpoint):
    model = loading.load(tiny_checkpoint, "cpu")
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        for run in (
            lambda: loading.load(tiny_checkpoint),
            lambda: model.sample([1], [0]),
            lambda: train(RECIPE, tmp_path, data=DATASET),
        ):
            with pytest.raises(ValueError, match=r"defaults are torch\.float64 on cpu, expected"):
                run()
    finally:
        torch.set_default_dtype(before)
    with torch.device("meta"), pytest.raises(ValueError, match=r"float32 on meta, expected"):
        loading.load(tiny_checkpoint)


def test_what_is_loaded_in_inference_mode_is_like_any_other(tiny_checkpoint):
    with torch.inference_mode():
        model = loading.load(tiny_checkpoint, "cpu")
    model.nll(model.sample([1], [0]), [1]).sum().backward()
    assert not any(parameter.is_inference() for parameter in model.parameters())


FORKED = """
import os, signal, torch
from mnist_transformer.utils import devices
x = torch.randn(300, 300)
x.softmax(-1)
if not os.fork():
    signal.alarm(20)  # ends a child that hangs
    x.softmax(-1)
    os._exit(0)
raise SystemExit(os.wait()[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_draws_too(tmp_path):
    folder = os.path.dirname(os.path.dirname(__file__))
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": folder}
    subprocess.run([sys.executable, "-c", FORKED], env=environment, check=True, timeout=120)
