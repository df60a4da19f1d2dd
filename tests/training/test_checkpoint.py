"""What is saved, checked, set aside and read again; and what a resume does with foreign files."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils

from jaxft.experiment.alarm import Alarm
from jaxft.experiment.session import Memory
from jaxft.training import digests
from jaxft.training.checkpoint import Checkpoints, Keep, check_resume_step
from jaxft.training.logs import Logs
from jaxft.training.mesh import make_parallel
from jaxft.training.reader import CheckpointDamaged, CheckpointGone, CheckpointReader
from jaxft.training.rows import read_metrics, truncate_after
from jaxft.training.step import TrainState

PARALLEL = make_parallel("jit")


def state(value: int) -> TrainState:
    """One with `value` updates done and `value` in every parameter."""
    params = {"kernel": jnp.full((40, 30), value, jnp.float32), "bias": jnp.full(3, value + 0.5)}
    slots = optax.adam(1e-3).init(params)
    given = {"step": jnp.int32(value), "params": params, "frozen": {}, "opt_state": slots}
    names = [field.name for field in dataclasses.fields(TrainState)]
    return TrainState(**{name: given.get(name) for name in names})


def save(directory: Path, *steps: int, keep: int = 3, best: int | None = None) -> None:
    with Checkpoints(directory, PARALLEL, keep=Keep(keep)) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step), {"best_step": best}, best)


def assert_holds(reader: CheckpointReader, step: int) -> None:
    found, memory = reader.restore(step, state(0))
    jax.tree.map(np.testing.assert_array_equal, found.params, state(step).params)
    assert int(found.step) == step and set(memory) == {"best_step"}


def contents(directory: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(p): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"")
        for p in directory.rglob("*")
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of the steps 1, 2 and 3; tests copy it."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    save(directory, 1, 2, 3)
    return directory


@pytest.mark.parametrize("best,kept", [(None, [4, 5]), (2, [2, 4, 5]), (5, [4, 5])])
def test_the_latest_and_the_best_are_kept(tmp_path, best, kept):
    save(tmp_path, 1, 2, 3, 4, 5, keep=2, best=best)
    assert CheckpointReader(tmp_path, PARALLEL).steps() == kept
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(map(str, kept))
    for step in kept:
        assert_holds(CheckpointReader(tmp_path, PARALLEL), step)


def test_a_reader_leaves_no_trace(saved, tmp_path):
    directory = shutil.copytree(saved, tmp_path / "checkpoints")
    (directory / "4.orbax-checkpoint-tmp").mkdir()
    (directory / "deleted-0").mkdir()
    before = contents(tmp_path)
    reader = CheckpointReader(directory, PARALLEL)
    assert reader.steps() == [1, 2, 3] and reader.latest_step() == 3
    assert_holds(reader, 2)
    reader.memory(3), reader.restore_params(1, state(0).params)
    assert contents(tmp_path) == before
    elsewhere = CheckpointReader(tmp_path / "none", PARALLEL)
    assert elsewhere.steps() == [] and elsewhere.latest_step() is None
    with pytest.raises(CheckpointGone, match="no checkpoint of step 1"):
        elsewhere.memory(1)
    assert not (tmp_path / "none").exists()


def test_a_reader_amid_a_save_sees_the_one_before_and_disturbs_nothing(tmp_path, monkeypatch):
    """The save stands still when all is written and nothing visible; keep=1."""
    save(tmp_path, 1, keep=1)
    written, read = threading.Event(), threading.Event()
    finalize = ocp.CompositeCheckpointHandler.finalize

    def slow(self, directory):
        written.set()
        assert read.wait(60)
        finalize(self, directory)

    monkeypatch.setattr(ocp.CompositeCheckpointHandler, "finalize", slow)
    with Checkpoints(tmp_path, PARALLEL, keep=Keep(1)) as checkpoints:
        checkpoints.save(2, state(2), {"best_step": None}, None)
        assert written.wait(60)
        reader = CheckpointReader(tmp_path, PARALLEL)
        assert reader.steps() == [1]
        assert_holds(reader, 1)
        read.set()
        checkpoints.wait()
        assert reader.steps() == [2]
    assert_holds(reader, 2)


@pytest.mark.parametrize("item", ["params", "memory"])
def test_a_step_that_is_deleted_while_it_is_read_is_gone_and_not_damaged(
    saved, tmp_path, monkeypatch, item
):
    directory = shutil.copytree(saved, tmp_path / "checkpoints")
    reader, check = CheckpointReader(directory, PARALLEL), digests.check

    def then_deleted(folder, *rest, **options):
        wrong = check(folder, *rest, **options)
        os.rename(folder, directory / "deleted-3")
        shutil.rmtree(directory / "deleted-3")
        return wrong

    monkeypatch.setattr(digests, "check", then_deleted)
    with pytest.raises(CheckpointGone, match="no checkpoint of step 3 .* now"):
        reader.memory(3) if item == "memory" else reader.restore_params(3, state(0).params)


def files_of(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("damage", ["flipped", "cut", "zeroed", "emptied", "missing", "pipe"])
def test_damage_in_any_file_is_named_in_one_line(saved, tmp_path, capfd, damage):
    names = files_of(saved / "3")
    assert "digests.json" in names and len(names) > 20
    for number, name in enumerate(names):
        directory = shutil.copytree(saved, tmp_path / str(number))
        path = directory / "3" / name
        data = bytearray(path.read_bytes())
        if damage == "flipped":
            data[len(data) * number // len(names)] ^= 1 << number % 8
        path.write_bytes(
            {"zeroed": bytes(len(data)), "cut": data[:-1], "emptied": b""}.get(damage, data)
        )
        if damage in ("missing", "pipe"):
            path.unlink()
        if damage == "pipe":
            os.mkfifo(path)
        with pytest.raises(ValueError) as caught:
            CheckpointReader(directory, PARALLEL).restore(3, state(0))
        message = str(caught.value)
        assert f"{directory}/3 is damaged: {name}" in message and "\n" not in message, message
        assert message.endswith("from step 2, give --resume_from=2 to the same command")
        assert files_of(directory / "3") or damage == "missing"
    assert capfd.readouterr().err == ""


def test_a_damaged_part_stops_only_those_who_read_it(saved, tmp_path):
    directory = shutil.copytree(saved, tmp_path / "checkpoints")
    (directory / "3/slots/manifest.ocdbt").write_bytes(b"")
    reader = CheckpointReader(directory, PARALLEL)
    reader.memory(3), reader.restore_params(3, state(0).params)
    with pytest.raises(ValueError, match="slots/manifest.ocdbt has 0 bytes instead of"):
        reader.restore(3, state(0))


def test_the_advice_names_the_newest_that_is_whole(saved, tmp_path):
    directory = shutil.copytree(saved, tmp_path / "checkpoints")
    for step, advice in ((3, "--resume_from=2 "), (2, "--resume_from=1 "), (1, "--resume_from=0 ")):
        shutil.rmtree(directory / str(step) / "params")
        with pytest.raises(ValueError, match=advice):
            CheckpointReader(directory, PARALLEL).restore(step, state(0))
    with pytest.raises(ValueError, match="from the beginning, give --resume_from=0"):
        CheckpointReader(directory, PARALLEL).restore(3, state(0))


def _flip(folder: Path) -> None:
    file = max((folder / "params/d").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = {
    "a flipped bit": (_flip, "has changed since it was saved"),
    "a truncated file": (lambda f: os.truncate(f / "slots/manifest.ocdbt", 9), "has 9 bytes instead"),
    "a missing file": (lambda f: (f / "memory/metadata").unlink(), "memory/metadata is missing"),
    "a missing part": (lambda f: shutil.rmtree(f / "slots"), "is missing"),
    "an empty directory": (_empty, "params is missing"),
    "no checksums": (lambda f: (f / digests.NAME).unlink(), "digests.json is missing"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_is_set_aside_and_the_one_before_it_used(saved, tmp_path, damage):
    directory = shutil.copytree(saved, tmp_path / "checkpoints")
    wound, words = DAMAGES[damage]
    wound(directory / "3")
    damaged = list(contents(directory / "3").values())
    with Checkpoints(directory, PARALLEL, keep=Keep(3)) as checkpoints:
        step, said = checkpoints.newest_usable()
        assert step == 2 and "\n" not in said
        assert f"step 3 is damaged: {words}" in said or words in said
        assert said.endswith(f"set aside as {directory}/damaged-3")
        assert_holds(checkpoints, 2)
        assert checkpoints.newest_usable() == (2, "")
    assert list(contents(directory / "damaged-3").values()) == damaged
    assert CheckpointReader(directory, PARALLEL).steps() == [1, 2]


def test_a_checkpoint_to_go_on_from_is_held_against_its_checksums_once(
    saved, tmp_path, monkeypatch
):
    directory, read = shutil.copytree(saved, tmp_path / "checkpoints"), []
    original = digests.check
    monkeypatch.setattr(
        digests, "check", lambda f, *a, **k: (read.append(f.name), original(f, *a, **k))[1]
    )
    _flip(directory / "3")
    with Checkpoints(directory, PARALLEL, keep=Keep(3)) as checkpoints:
        assert checkpoints.newest_usable()[0] == 2
        assert_holds(checkpoints, 2)
        assert read == ["3", "2"]
        _flip(directory / "2")  # once it has been restored, what was found counts no more
        with pytest.raises(CheckpointDamaged, match="has changed since it was saved"):
            checkpoints.restore(2, state(0))
        assert checkpoints.newest_usable()[0] == 1
        shutil.move(directory / "1", directory / "old")
        shutil.copytree(directory / "old", directory / "1")  # another one under its name
        with pytest.raises(CheckpointGone):
            checkpoints.restore(1, state(0))


def test_of_several_damaged_ones_all_are_set_aside_and_of_none_before_them_nothing(saved, tmp_path):
    directory = shutil.copytree(saved, tmp_path / "checkpoints")
    _flip(directory / "3"), _flip(directory / "2")
    with Checkpoints(directory, PARALLEL, keep=Keep(3)) as checkpoints:
        step, said = checkpoints.newest_usable()
        assert step == 1 and "damaged-2, " in said and "damaged-3" in said
        _flip(directory / "1")
        assert checkpoints.newest_usable() == (1, "")
        with pytest.raises(CheckpointDamaged, match="from the beginning, give --resume_from=0"):
            checkpoints.restore(1, state(0))
    assert CheckpointReader(directory, PARALLEL).steps() == [1]


def test_a_rename_that_a_kill_cut_short_is_no_checkpoint(saved, tmp_path):
    """The step was still under its temporary name, or already under that of a deletion."""
    directory = shutil.copytree(saved, tmp_path / "checkpoints")
    os.rename(directory / "3", directory / "3.orbax-checkpoint-tmp")
    os.rename(directory / "1", directory / "deleted-1")
    shutil.rmtree(directory / "deleted-1/params")
    with Checkpoints(directory, PARALLEL, keep=Keep(3)) as checkpoints:
        assert checkpoints.newest_usable() == (2, "")
        assert_holds(checkpoints, 2)
        checkpoints.save(3, state(3), {"best_step": None}, None)
    assert sorted(p.name for p in directory.iterdir()) == ["2", "3"]


HOURS = [
    (step, 3600.0 * hour) for step, hour in ((10, 0), (20, 0.4), (30, 1.1), (40, 1.9), (55, 2.3))
]


@pytest.mark.parametrize(
    ("keep", "stay"),
    [
        (Keep(), {55}),
        (Keep(2), {40, 55}),
        (Keep(9), {10, 20, 30, 40, 55}),
        (Keep(1, every_steps=20), {20, 40, 55}),
        (Keep(1, every_hours=1), {10, 30, 55}),
        (Keep(1, every_steps=30, every_hours=2), {10, 30, 55}),
    ],
)
def test_which_checkpoints_stay(keep, stay):
    assert keep.of(HOURS) == stay
    # What stays, stays when it is asked again.
    assert keep.of([one for one in HOURS if one[0] in stay]) == stay


def test_the_alarm_rings_once_its_minutes_have_passed():
    now = [0.0]
    alarm, never = Alarm(2, lambda: now[0]), Alarm(None, lambda: now[0])
    for seconds, rings in ((0, False), (119, False), (120, True), (500, True)):
        now[0] = seconds
        assert (alarm.rings(1), never.rings(1)) == (rings, False)
    alarm.set()
    assert not alarm.rings(2)


def without_checksums(folder: Path) -> None:
    """As an earlier version saved it."""
    (folder / digests.NAME).unlink()
    metadata = json.loads((folder / "_CHECKPOINT_METADATA").read_text())
    (folder / "_CHECKPOINT_METADATA").write_text(json.dumps({**metadata, "custom_metadata": {}}))


def test_checkpoints_of_earlier_versions_restore(saved, tmp_path, capfd):
    directory = shutil.copytree(saved, tmp_path / "checkpoints")
    for step in (1, 2, 3):
        without_checksums(directory / str(step))
    reader = CheckpointReader(directory, PARALLEL)
    assert_holds(reader, 3)
    for step, damage in ((3, b""), (2, None)):  # noticed by the library, if at all
        for path in (directory / str(step)).rglob("*"):
            if path.is_file():
                path.write_bytes(bytes(path.stat().st_size) if damage is None else damage)
        with pytest.raises(ValueError, match=f"{directory}/{step} is damaged: "):
            reader.restore(step, state(0))
    shutil.rmtree(directory / "1/slots")
    with pytest.raises(ValueError, match="slots is missing"):
        reader.restore(1, state(0))


def test_a_kill_right_after_the_commit_leaves_a_checkpoint_that_restores(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "seal", lambda folder: "")
    save(tmp_path, 1)
    reader = CheckpointReader(tmp_path, PARALLEL)
    assert not {"_CHECKPOINT_METADATA", "commit_success.txt"} & set(digests.read(tmp_path / "1"))
    assert_holds(reader, 1)
    arrays = (tmp_path / "1/params/ocdbt.process_0/d").iterdir()
    file = max(arrays, key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)
    with pytest.raises(ValueError, match="has changed since it was saved"):
        reader.restore(1, state(0))


@pytest.mark.parametrize("part", ["params", "digests.json"])
def test_nothing_is_deleted_before_the_new_one_is_known_to_be_whole(tmp_path, monkeypatch, part):
    """Another process takes a part of what was just saved away; keep=1."""
    save(tmp_path, 1, keep=1)
    finished = Checkpoints._complete

    def robbed(self, step, best):
        self._manager.wait_until_finished()
        path = tmp_path / str(step) / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        finished(self, step, best)

    monkeypatch.setattr(Checkpoints, "_complete", robbed)
    with pytest.raises(OSError, match=f"2 has just been saved, and {part}.* is missing"):
        save(tmp_path, 2, keep=1)
    assert_holds(CheckpointReader(tmp_path, PARALLEL), 1)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(28, "No space left on device"),
            "no space left to save into .* earlier checkpoints are int",
        ),
        (
            ValueError("PERMISSION_DENIED: Error writing local\nfile"),
            "^.Errno 13. cannot write checkpoints",
        ),
        (OSError(30, "Read-only file system"), "cannot write checkpoints into"),
    ],
)
def test_a_save_that_cannot_be_verified_does_not_become_visible(tmp_path, monkeypatch, error, said):
    def full(folder):
        raise error

    save(tmp_path, 1, keep=1)
    monkeypatch.setattr(digests, "write", full)
    with pytest.raises(OSError, match=said):
        save(tmp_path, 2, keep=1)
    assert_holds(CheckpointReader(tmp_path, PARALLEL), 1)
    assert CheckpointReader(tmp_path, PARALLEL).steps() == [1]


def test_only_the_writer_removes_what_a_kill_left(saved, tmp_path):
    directory = shutil.copytree(saved, tmp_path / "checkpoints")
    for name in ("deleted-0/params", "4.orbax-checkpoint-tmp/params", "damaged-7/params"):
        (directory / name).mkdir(parents=True)
    CheckpointReader(directory, PARALLEL).memory(3)
    assert len(list(directory.iterdir())) == 6
    save(directory, 4)
    assert sorted(p.name for p in directory.iterdir()) == ["2", "3", "4", "damaged-7"]


def test_later_checkpoints_are_set_aside_and_written_again(saved, tmp_path):
    directory = shutil.copytree(saved, tmp_path / "checkpoints")
    damaged = contents(directory / "3")
    with Checkpoints(directory, PARALLEL, keep=Keep(3)) as checkpoints:
        with pytest.raises(ValueError, match="no checkpoint of step 7 .*; there are 1, 2, 3, or 0"):
            checkpoints.set_aside_after(7)
        assert checkpoints.set_aside_after(3) == []
        assert checkpoints.set_aside_after(2) == [directory / "damaged-3"]
        assert checkpoints.latest_step() == 2
        assert_holds(checkpoints, 2)
        checkpoints.save(3, state(3), {"best_step": None}, None)
        checkpoints.wait()
        assert_holds(checkpoints, 3)
        assert checkpoints.set_aside_after(0)[-1] == directory / "damaged-3-2"
        assert checkpoints.latest_step() is None
        checkpoints.save(1, state(1), {"best_step": None}, None)
    assert list(contents(directory / "damaged-3").values()) == list(damaged.values())
    assert CheckpointReader(directory, PARALLEL).steps() == [1]


def test_a_step_to_resume_from_is_checked_by_name_alone(tmp_path):
    check_resume_step(tmp_path / "none", 0)
    with pytest.raises(ValueError, match="no checkpoint of step 5 in .*; there is none"):
        check_resume_step(tmp_path / "none", 5)


def test_saving_never_asks_whether_the_run_is_preempted(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    save(tmp_path, 1, 2)
    assert asked == []


@dataclasses.dataclass
class _Case:
    saved: object
    says: str


WHOLE = dataclasses.asdict(Memory(4, 0.5, {"loss": 0.5}, 0.5, 1, False))


@pytest.mark.parametrize(
    "case",
    [
        _Case([1], "it is "),
        _Case("text", "it is 'text'"),
        _Case({}, "it has no 'best_step'"),
        _Case({**WHOLE, "mood": 1}, "nothing here knows its 'mood'"),
        _Case({**WHOLE, "best_step": "4"}, "its 'best_step' is '4'"),
        _Case({**WHOLE, "best_step": True}, "its 'best_step' is True"),
        _Case({**WHOLE, "best_value": float("nan")}, "its 'best_value' is nan"),
        _Case({**WHOLE, "best_metrics": []}, "its 'best_metrics' is"),
        _Case({**WHOLE, "without_improvement": -1}, "its 'without_improvement' is -1"),
        _Case({**WHOLE, "stopped_early": 0}, "its 'stopped_early' is 0"),
        _Case({**WHOLE, "best_step": None}, "only a part"),
    ],
    ids=lambda case: case.says,
)
def test_a_memory_that_is_not_ours_is_one_line(case):
    with pytest.raises(ValueError) as caught:
        Memory.from_json(case.saved)
    assert case.says in str(caught.value) and "\n" not in str(caught.value)


def test_a_memory_survives_json():
    for memory in (Memory(), Memory(**WHOLE)):
        assert Memory.from_json(json.loads(json.dumps(dataclasses.asdict(memory)))) == memory


TRAIN = {"kind": "train", "step": 2, "epoch": 0.1, "loss": 0.5, "learning_rate": 0.1,
         "grad_norm": 1.0, "seconds": 1.5}  # fmt: skip
FOREIGN = {
    "a list": b"[1, 2]", "a number": b"7", "no step": b'{"kind": "train"}', "no kind": b'{"step": 1}',
    "text": b"see notes", "not utf-8": b"\xff\xfe\x00", "a string step": b'{"kind": "event", "step": "1"}',
    "not finite": json.dumps({**TRAIN, "loss": float("nan")}).encode(),
    "deep": b"[" * 100_000, "a kind of list": b'{"kind": [], "step": 1}',
    "digits": b'{"kind": "event", "step": ' + b"1" * 5000 + b"}",
}  # fmt: skip


def logs(directory: Path) -> Logs:
    return Logs(
        directory, total_steps=9, steps_per_epoch=9, log_every=1, tensorboard=True, enabled=True
    )


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_lines_in_metrics_are_kept_in_a_copy_and_said(tmp_path, capsys, what):
    path = tmp_path / "metrics.jsonl"
    later = {**TRAIN, "step": 5}
    lines = [json.dumps(TRAIN).encode(), FOREIGN[what], json.dumps(later).encode()]
    path.write_bytes(b"\n".join(lines) + b"\n")
    before = path.read_bytes()
    with logs(tmp_path) as resumed:
        resumed.resume(2)
    copy = tmp_path / "metrics.jsonl.damaged"
    assert str(copy) in "".join(capsys.readouterr().out.split("\n"))
    assert copy.read_bytes() == before
    assert [row["step"] for row in read_metrics(path)] == [2, 2]
    assert path.read_bytes().startswith(lines[0] + b'\n{"kind": "event"')
    assert truncate_after(path, 2)[1] is None  # and it is made once


def test_a_row_without_its_line_end_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(TRAIN))
    assert truncate_after(path, 2) == ([TRAIN], None)
    assert path.read_text() == json.dumps(TRAIN) + "\n"


@pytest.mark.parametrize(
    "name,kind",
    [("metrics.jsonl", "folder"), ("metrics.jsonl", "pipe"), ("tensorboard", "file"),
     ("tensorboard", "pipe")],
)  # fmt: skip
def test_what_is_in_the_way_of_logs_is_one_line_before_anything_runs(tmp_path, name, kind):
    path = tmp_path / name
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "file": path.touch}[kind]()
    with pytest.raises(ValueError, match=f"{path} is in the way"):
        logs(tmp_path)
