"""Runs and exports in a store: what is read of them is whole, what is written is whole or no checkpoint."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from jaxft.data.store import StoreError
from jaxft.experiment import stored_export, stored_run
from jaxft.experiment.mirror import Mirror, record_of
from jaxft.experiment.stored_export import export_place
from jaxft.experiment.stored_run import MARK, shown, with_best, with_checkpoint, with_records
from jaxft.terminal.flags import parse
from tests.experiment.test_mirror import Cut, again, begun, files, finished, store_at, went_on


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def copied(tmp_path):
    """(a local run, its mirror, the address of its copy), as it is after its first checkpoint."""
    run = tmp_path / "run"
    begun(run)
    mirror = Mirror(run, store_at(tmp_path / "store/mine"))
    mirror.sync()
    files(tmp_path / "store/mine", "mirror/run.json", content="{}")  # of who holds it
    return run, mirror, f"file://{tmp_path}/store/mine"


def test_a_run_is_read_as_it_was_and_only_what_is_needed(copied):
    run, mirror, address = copied
    with pytest.raises(ValueError, match="mine has no best/ that is whole: finish the run"):
        with_best(address)
    first = with_checkpoint(address, None, lambda path, newest: None)
    assert first.name == "mine" and (first / "checkpoints/4/params/d").is_file()
    for change in (went_on, finished):
        change(run)
        mirror.sync()
    second = with_best(address)
    assert (second / "best/config.json").read_text() == "first\n"
    assert not (second / "checkpoints").exists() and not (second / "predictions").exists()
    again(run)
    mirror.sync()
    assert with_best(address) != second
    # Who reads the earlier one still has it.
    assert (second / "best/config.json").read_text() == "first\n"
    assert (first / "checkpoints/4/params/d").is_file()
    records = with_records(address)
    assert (records / "metrics.jsonl").read_text() == "longer\n"
    assert not (records / "best").exists()
    assert with_best(run) == run  # a local one as it is


def test_the_best_checkpoint_comes_with_the_newest_that_knows_it(copied):
    run, mirror, address = copied
    files(run, "checkpoints/6/params/d", "checkpoints/8/params/d")
    mirror.sync()
    asked = []

    def best_of(path, newest):
        asked.append(newest)
        return 4

    path = with_checkpoint(address, None, best_of)
    assert sorted(os.listdir(path / "checkpoints")) == ["4", "8"] and asked == [8, 8]
    assert os.listdir(with_checkpoint(address, 6, best_of) / "checkpoints") == ["6"]
    with pytest.raises(ValueError, match="--step=5 is not kept; there are 4, 6, 8"):
        with_checkpoint(address, 5, best_of)


def test_what_is_read_is_held_against_its_record_and_not_downloaded_twice(
    copied, tmp_path, monkeypatch
):
    run, mirror, address = copied
    finished(run)
    mirror.sync()
    file = tmp_path / "store/mine/best/model.safetensors"
    file.write_text("fIrst\n")
    with pytest.raises(StoreError, match="model.safetensors is not what was copied there, 4 times"):
        with_best(address)
    file.write_text("first\n")
    path = with_best(address)
    monkeypatch.setattr(stored_run, "_beside", None)
    assert with_best(address) == path


def test_a_run_that_goes_on_while_it_is_read_is_read_again(copied, monkeypatch):
    run, mirror, address = copied
    finished(run)
    mirror.sync()
    original, changed = stored_run.record, []

    def record(store, item):
        found = original(store, item)
        if not changed:
            changed.append(True)
            again(run)
            mirror.sync()
        return found

    monkeypatch.setattr(stored_run, "record", record)
    path = with_best(address)
    assert sorted(os.listdir(path / "best")) == ["config.json", "model.safetensors"]
    assert {p.read_text() for p in (path / "best").iterdir()} == {"second\n"}


def test_what_is_no_run_is_one_line(copied, tmp_path):
    _, _, address = copied
    with pytest.raises(ValueError, match="store/none: there is no such folder, or nothing in it"):
        with_best(f"file://{tmp_path}/store/none")
    with pytest.raises(ValueError, match="store holds no run and no checkpoint: it has no config"):
        with_records(f"file://{tmp_path}/store")
    with pytest.raises(ValueError, match="http://here/mine is a web address; a run or a check"):
        with_best("http://here/mine")
    files(tmp_path, "hand/config.json", "hand/model.safetensors")  # no run of ours
    assert (with_best(f"file://{tmp_path}/hand") / "model.safetensors").is_file()
    (tmp_path / "store/mine" / record_of("checkpoints/4")).unlink()
    with pytest.raises(ValueError, match="the run has no complete checkpoint there yet"):
        with_checkpoint(address, None, lambda path, newest: None)
    assert shown("s3://key:secret@bucket/mine?x=y") == "s3://bucket/mine"


def export(address: str, content: str, *names: str, reads: str = "") -> None:
    with export_place(address, reads) as place:
        assert not os.path.exists(place)
        for name in ("config.json", "model.safetensors", *names):
            os.makedirs(os.path.dirname(f"{place}/{name}"), exist_ok=True)
            with open(f"{place}/{name}", "w") as file:
                file.write(content)


def test_an_export_is_whole_there_at_every_moment_and_after_a_kill_at_any(
    tmp_path, cache, monkeypatch
):
    def open_at(number, **faults):
        place = tmp_path / f"store{number}/model"
        monkeypatch.setattr(stored_export, "open_store", lambda address: store_at(place, **faults))
        return place

    def assert_whole(place, *versions):
        if (place / "config.json").exists():
            found = {p.read_text() for p in place.rglob("*") if p.is_file() and p.name != MARK}
            assert len(found) == 1 and found <= set(versions), found
            assert (place / "model.safetensors").exists()
        ours = json.loads((place / MARK).read_text())["files"]
        assert {p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()} <= {
            MARK, *ours
        }  # fmt: skip

    watched = tmp_path / "store0/model"
    system = store_at(watched, watch=lambda: assert_whole(watched, "one", "two"))
    monkeypatch.setattr(stored_export, "open_store", lambda address: system)
    export("file:///x", "one", "modules/a.json")
    before = system.system.changes
    export("file:///x", "two", "vocab.txt")
    count = system.system.changes - before
    assert sorted(os.listdir(watched)) == [
        "config.json", MARK, "model.safetensors", "modules", "vocab.txt"
    ]  # fmt: skip
    assert not os.listdir(watched / "modules")
    for dies in range(1, count + 1):
        open_at(dies)
        export("file:///x", "one", "modules/a.json")
        place = open_at(dies, dies=dies)
        with pytest.raises(Cut):
            export("file:///x", "two", "vocab.txt")
        assert_whole(place, "one", "two")
        open_at(dies)
        export("file:///x", "two", "vocab.txt")
        assert_whole(place, "two")
        assert (place / "config.json").exists()
        assert set(json.loads((place / MARK).read_text())["files"]) == {
            "config.json", "model.safetensors", "vocab.txt"
        }  # fmt: skip
        shutil.rmtree(place)
    assert not os.listdir(cache / "jaxft/exports")


def test_an_export_that_cannot_be_sent_is_one_line_and_leaves_nothing_here(
    tmp_path, cache, monkeypatch
):
    refusing = store_at(tmp_path / "store", fails=range(1, 99))
    monkeypatch.setattr(stored_export, "open_store", lambda address: refusing)
    with pytest.raises(
        OSError, match="after 3 attempts .*; no half of an export is read"
    ) as caught:
        export("file:///x", "one")
    assert "\n" not in str(caught.value) and not os.listdir(cache / "jaxft/exports")
    assert not (tmp_path / "store/config.json").exists()


def test_an_export_replaces_nothing_but_an_export(copied, tmp_path):
    _, _, address = copied
    with pytest.raises(ValueError, match="store/mine is a run; give a place of its own"):
        export(address, "one")
    with pytest.raises(ValueError, match="mine/best belongs to the run file://.*store/mine; give"):
        export(f"{address}/best", "one")
    model = f"file://{tmp_path}/models/mine"
    with pytest.raises(ValueError, match="is what the export is made of; give another place"):
        export(model, "one", reads=f"{model}/")
    with pytest.raises(ValueError, match="http://here/mine is a web address; give a directory, or"):
        export("http://here/mine", "one")
    export(model, "one")
    files(tmp_path / "models/mine", "notes.txt")
    with pytest.raises(ValueError, match="holds 'notes.txt', which jaxft did not export, so it is"):
        export(model, "two")
    assert (tmp_path / "models/mine/config.json").read_text() == "one"
    files(tmp_path / "theirs", "config.json")
    with pytest.raises(ValueError, match="holds 'config.json', which jaxft did not export"):
        export(f"file://{tmp_path}/theirs", "one")


@pytest.mark.parametrize("flag", ["run", "output"])
def test_commands_take_addresses(flag):
    from jaxft import evaluate, export, predict

    values, _ = parse(["export", "--run=s3://b/run", "--output=gs://b/model"], export.FLAGS)
    assert (values.run, values.output) == ("s3://b/run", "gs://b/model")
    for command, given in ((evaluate, ()), (predict, ("--input=a.csv",))):
        values, _ = parse([flag, "--run=s3://b/run", "--output=a.csv", *given], command.FLAGS)
        assert values.run == "s3://b/run"
    with pytest.raises(ValueError, match="--output='s3://b/a.csv' is a remote place"):
        parse(["predict", "--run=r", "--input=a", "--output=s3://b/a.csv"], predict.FLAGS)
