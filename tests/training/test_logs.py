"""What a run leaves on disk while it goes on, and after it was killed."""

import errno
import json
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto import event_pb2

from jaxft.training.logs import Logs
from jaxft.training.rows import read_rows, truncate_after
from jaxft.training.window import Fed

METRICS = {
    "loss": 0.5,
    "accuracy": 0.8,
    "f1_macro": 0.7,
    "mcc": 0.6,
    "examples": 4,
    "confusion": [[4]],
}


def make(directory, **changes):
    options = {
        "total_steps": 40,
        "steps_per_epoch": 10,
        "log_every": 5,
        "tensorboard": False,
        "enabled": True,
    }
    return Logs(directory, **{**options, **changes})


def step_metrics(loss, weight=8.0, grad_norm=1.0):
    return {
        k: jnp.float32(v)
        for k, v in {"loss": loss, "weight": weight, "grad_norm": grad_norm}.items()
    }


def run(logs, first, last):
    """Steps first..last as the loop does them: loss 1/step, an evaluation at step 20."""
    for step in range(first, last + 1):
        logs.train(step, step_metrics(1 / step), 1e-3)
        if step == 20:
            logs.flush()
            logs.evaluation(step, "eval", METRICS, best=True)


def without_times(rows):
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "examples_per_second")}
        for row in rows
    ]


def rows_of(directory):
    return read_rows(directory / "metrics.jsonl")


def test_rows_say_what_was_padding_and_what_was_waited_for(tmp_path, capsys):
    with make(tmp_path, log_every=2, when_waiting="raise it") as logs:
        logs.train(1, step_metrics(1.0), 1e-3, Fed(50, 100, 0.0))
        logs.train(2, step_metrics(1.0), 1e-3, Fed(100, 100, 1e6))
    with make(tmp_path, log_every=2, when_waiting="raise it") as logs:
        logs.resume(2)
        logs.train(3, step_metrics(1.0), 1e-3, Fed(10, 100, 5.0))
        assert logs.waited == 1e6
    first, _, second = rows_of(tmp_path)
    assert (first["padding"], first["waiting_seconds"]) == (0.25, 1e6)
    assert (second["padding"], second["waiting_seconds"]) == (0.9, 1e6 + 5)
    assert "raise it" not in capsys.readouterr().out  # of so short a run


def test_rows_hold_the_weighted_mean_since_the_row_before(tmp_path):
    with make(tmp_path, log_every=2) as logs:
        logs.train(1, step_metrics(1.0, weight=30.0, grad_norm=2.0), 1e-3)
        logs.train(2, step_metrics(3.0, weight=10.0, grad_norm=4.0), 2e-3)
        logs.train(3, step_metrics(7.0, weight=10.0), 3e-3)
    first, second = rows_of(tmp_path)
    assert (first["step"], first["loss"], first["grad_norm"]) == (2, 1.5, 3.0)
    assert (first["learning_rate"], first["epoch"]) == (2e-3, 0.2)
    assert (second["step"], second["loss"]) == (3, 7.0)  # the end of the run is logged too
    assert 0 < first["seconds"] < second["seconds"]
    assert set(first) == {
        "kind", "step", "epoch", "seconds",
        "loss", "learning_rate", "grad_norm", "examples_per_second",
    }  # fmt: skip


def test_tokens_are_counted_when_known(tmp_path):
    with make(tmp_path) as logs:
        logs.train(1, {**step_metrics(1.0, weight=4.0), "tokens": jnp.float32(400)}, 1e-3)
    (row,) = rows_of(tmp_path)
    assert row["tokens_per_second"] == pytest.approx(100 * row["examples_per_second"], rel=1e-3)


@pytest.mark.parametrize("killed_at", [22, 25, 33])
def test_a_killed_and_continued_run_leaves_the_rows_of_an_uninterrupted_one(tmp_path, killed_at):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    with make(whole) as logs:
        run(logs, 1, 40)
    dying = make(killed)
    run(dying, 1, killed_at)
    dying.close()  # nothing is flushed, as after SIGKILL
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 40, "lo')
    with make(killed) as logs:
        logs.resume(20)
        run(logs, 21, 40)
    rows = without_times(rows_of(killed))
    resumes = [row for row in rows if row.get("name") == "resume"]
    assert [row["step"] for row in resumes] == [20]
    assert [row for row in rows if row not in resumes] == without_times(rows_of(whole))
    seconds = [row["seconds"] for row in rows_of(killed) if row["kind"] == "train"]
    assert seconds == sorted(seconds)


def test_a_run_killed_before_its_first_checkpoint_starts_clean(tmp_path):
    dying = make(tmp_path)
    run(dying, 1, 12)
    dying.close()
    assert rows_of(tmp_path)
    with make(tmp_path) as logs:
        run(logs, 1, 5)
    assert [row["step"] for row in rows_of(tmp_path)] == [5]


def test_truncation_replaces_the_file_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert truncate_after(path, 3) == ([], None) and not path.exists()
    rows = [{"kind": "event", "step": s, "name": "n", "message": "m"} for s in (1, 3, 5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "tr')
    assert truncate_after(path, 3) == (rows[:2], None)
    assert path.read_text() == "".join(json.dumps(row) + "\n" for row in rows[:2])
    assert list(tmp_path.iterdir()) == [path]


class Slow:
    """A device scalar that is not ready until it is waited for."""

    def __init__(self, value):
        self.value, self.waited = value, False

    def copy_to_host_async(self):
        pass

    def is_ready(self):
        return self.waited

    def __array__(self, dtype=None, copy=None):
        self.waited = True
        return jax.numpy.asarray(self.value).__array__(dtype)


def test_metrics_are_not_waited_for_while_few_are_pending(tmp_path):
    losses = [Slow(1.0) for _ in range(6)]
    with make(tmp_path, log_every=1) as logs:
        for i, loss in enumerate(losses):
            logs.train(i + 1, {**step_metrics(1.0), "loss": loss}, 1e-3)
        # Four may be in flight; the two oldest had to be waited for.
        assert [loss.waited for loss in losses] == [True, True, False, False, False, False]
        logs.flush()
        assert all(loss.waited for loss in losses)
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "broken", [{"loss": float("nan")}, {"loss": 1.0, "grad_norm": float("inf")}]
)
@pytest.mark.parametrize("enabled", [True, False])
def test_a_loss_or_gradient_that_is_not_finite_ends_the_run(tmp_path, broken, enabled):
    raises = pytest.raises(FloatingPointError, match="at step 2;")
    with raises, make(tmp_path, enabled=enabled) as logs:
        logs.train(1, step_metrics(1.0), 1e-3)
        logs.train(2, step_metrics(**broken), 1e-3)
        logs.flush()
    if enabled:
        good, event = rows_of(tmp_path)
        assert good["step"] == 1 and good["loss"] == 1.0
        assert (event["step"], event["name"]) == (2, "not finite")


def test_other_processes_write_nothing(tmp_path, capsys):
    with make(tmp_path, enabled=False, tensorboard=True) as logs:
        logs.resume(0)
        run(logs, 1, 40)
        logs.event(40, "early stop", "stopped")
        logs.say("hello")
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_a_full_disk_is_said_once_and_clearly(tmp_path, monkeypatch):
    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            pass

    with pytest.raises(
        OSError, match="cannot write .*metrics.jsonl: no space left on device;"
    ) as caught:
        with make(tmp_path) as logs:
            logs.event(0, "start", "started")
            logs._rows._file.close()
            logs._rows._file = Full()
            run(logs, 1, 40)
    assert caught.value.errno == errno.ENOSPC


def test_a_write_that_takes_only_part_is_completed(tmp_path):
    with make(tmp_path) as logs:
        logs.event(0, "start", "started")
        file = logs._rows._file

        class Short:
            def write(self, data):
                return file.write(bytes(data[:7]))

            def close(self):
                file.close()

        logs._rows._file = Short()
        logs.event(1, "more", "x" * 50)
    assert rows_of(tmp_path)[1] == {"kind": "event", "step": 1, "name": "more", "message": "x" * 50}


def events_of(path):
    """Records of an event file, checksums verified by another implementation than ours."""
    data, events = path.read_bytes(), []
    mask = lambda crc: ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF  # noqa: E731
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12])[0] == mask(crc32c(data[:8]))
        body, data = data[12 : 12 + length], data[12 + length :]
        assert struct.unpack("<I", data[:4])[0] == mask(crc32c(body))
        data = data[4:]
        event = event_pb2.Event()
        event.ParseFromString(body)
        events.append(event)
    return events


def test_event_files_are_what_tensorboard_reads(tmp_path):
    with make(tmp_path, tensorboard=True, steps_per_epoch=300) as logs:
        logs.train(1, step_metrics(0.25), 1e-3)
        logs.flush()
        logs.evaluation(300, "eval", METRICS, best=True)
    with make(tmp_path, tensorboard=True) as logs:
        logs.resume(300)
    first, second = sorted((tmp_path / "tensorboard").iterdir())
    events = events_of(first)
    assert events[0].file_version == "brain.Event:2" and events[0].wall_time > 1e9
    values = {(e.step, v.tag): v.simple_value for e in events for v in e.summary.value}
    assert values[1, "train/loss"] == 0.25
    assert values[1, "train/learning_rate"] == pytest.approx(1e-3)
    for name in ("loss", "accuracy", "f1_macro", "mcc"):
        assert values[300, f"eval/{name}"] == pytest.approx(METRICS[name])
    # What the killed process wrote after step 300 is void.
    purge = [e.step for e in events_of(second) if e.session_log.status == e.session_log.START]
    assert purge == [301]


def test_evaluations_are_compared_with_the_best_also_after_a_resume(tmp_path, capsys):
    with make(tmp_path) as logs:
        logs.evaluation(10, "eval", METRICS, best=True)
    assert "+" not in capsys.readouterr().out
    with make(tmp_path) as logs:
        logs.resume(10)
        logs.evaluation(20, "eval", {**METRICS, "accuracy": 0.75}, best=False)
    out = capsys.readouterr().out
    assert "accuracy" in out and "0.8000" in out and "-0.0500" in out


def test_training_logging_and_metrics_import_nothing_heavy():
    heavy = "torch", "sklearn", "scipy.stats", "pandas", "matplotlib", "tensorflow", "tensorboardX"
    code = "import sys, jaxft.training.logs, jaxft.analysis.metrics, jaxft.analysis.report\n"
    code += "import jaxft.train\n"
    code += f"print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_the_speed_counts_examples_where_the_loss_counts_something_else(tmp_path):
    rows = {}
    for name, changes in {"as weighted": {}, "of 80 an epoch": {"epoch_examples": 80}}.items():
        (tmp_path / name).mkdir()
        with make(tmp_path / name, **changes) as logs:
            for step in range(1, 6):
                logs.train(step, step_metrics(1.0, weight=100.0), 1e-3)
        row = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])
        rows[name] = row["examples_per_second"] * row["seconds"]
    assert rows["as weighted"] == pytest.approx(500, rel=0.01)
    assert rows["of 80 an epoch"] == pytest.approx(40, rel=0.01)
