"""Data, checkpoints and runs in a store: a real server on the loopback, behind a proxy that fails.

S3 needs moto's server (`pip install moto flask flask-cors py-partiql-parser`), which is in no extra: its
libraries ask for other versions than ours. Skipped without it.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.fs
import pytest

from jaxft import compare, evaluate, export, load, predict, train
from jaxft.data import remote
from jaxft.data.remote import downloaded
from jaxft.data.store import StoreError, open_store
from jaxft.experiment import stored_export, stored_run
from jaxft.experiment.checkpoint_place import local_checkpoint
from jaxft.experiment.mirror import Mirror, records
from jaxft.experiment.workdir import fetch
from jaxft.terminal.errors import run_command
from tests import stores
from tests.end_to_end.faulty_proxy import FaultyProxy
from tests.experiment.test_mirror import again, begun, finished, went_on
from tests.worlds import ROOT, arguments, assert_same_weights

pytestmark = pytest.mark.slow
WAITS = (0.1, 0.2, 0.4, 0.8)


@pytest.fixture(scope="module", params=stores.SERVERS)
def server(request):
    """Kind and port of a server with the bucket 'bucket', or of one that can have it."""
    if not stores.installed(request.param):
        pytest.skip(f"{stores.SERVERS[request.param][0]} is not installed")
    with stores.serving(request.param) as port:
        yield request.param, port


class Store(FaultyProxy):
    """A server of a kind of store behind the proxy.

    Attributes:
      bucket: its address; shown: as messages say it; other: of one that is not there.
    """

    def __init__(self, kind: str, port: int):
        # Google's library waits for two minutes, which nothing shortens.
        super().__init__(port, silence=120 if kind == "s3" else 5)
        self.kind = kind
        self.bucket = stores.address(kind)
        self.shown = f"{kind}://bucket"
        self.other = self.bucket.replace("bucket", "nobucket")


@pytest.fixture
def proxy(server, monkeypatch, tmp_path):
    """In front of it; what jaxft and pyarrow find in the environment."""
    found = Store(*server)
    here = f"http://127.0.0.1:{found.port}"
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": here,
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": here, "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "_PATIENCE", 5.0)  # for which Google's library tries again
    if found.kind == "s3":
        system, _ = pyarrow.fs.FileSystem.from_uri("s3://bucket?allow_bucket_creation=true")
        system.create_dir("bucket")
    yield found
    found.end()


def put(folder: Path, address: str) -> None:
    store = open_store(address)
    for path in (p for p in folder.rglob("*") if p.is_file()):
        store.upload(path, path.relative_to(folder).as_posix())


def started(command, most: int = 12):
    """[What it gives], started again where it says so."""
    for _ in range(most):
        try:
            return [command()]
        except (ValueError, OSError) as error:
            assert "\n" not in str(error)
    raise AssertionError("never")


def test_data_and_a_checkpoint_come_whole_through_faults(world, proxy, tmp_path):
    store = open_store(f"{proxy.bucket}/data")
    store.upload(world / "train.csv", "train.csv")
    put(world / "one_block", f"{proxy.bucket}/models/bert")
    for number in range(8):  # each time one request later
        proxy.faults = [""] * number + ["503", "cut", "lost"]
        cache = str(tmp_path / str(number))
        ((path, _),) = started(
            functools.partial(downloaded, f"{proxy.bucket}/data/train.csv", cache)
        )
        assert path.read_bytes() == (world / "train.csv").read_bytes()
    proxy.faults = ["503", "lost", "cut", "503", "", "cut", "", "silent", "cut"] * 3
    (folder,) = map(
        Path, started(functools.partial(local_checkpoint, f"{proxy.bucket}/models/bert"))
    )
    names = sorted(p.name for p in (world / "one_block").iterdir())
    assert sorted(p.name for p in folder.iterdir()) == names
    for name in names:
        assert (folder / name).read_bytes() == (world / "one_block" / name).read_bytes()
    before = proxy.count
    assert Path(local_checkpoint(f"{proxy.bucket}/models/bert")) == folder
    assert proxy.count - before < 2 * len(names)  # listed, and nothing downloaded again
    with pytest.raises(ValueError, match=f"{proxy.shown}/models/none: there is no such folder"):
        local_checkpoint(f"{proxy.bucket}/models/none")


def test_a_copy_is_whole_through_faults_and_fetched_through_others(proxy, tmp_path):
    run, store = tmp_path / "run", open_store(f"{proxy.bucket}/runs/faults", WAITS)
    mirror = Mirror(run, store)
    for change in (begun, went_on, finished, again):
        change(run)
        proxy.faults = ["", "503", "", "cut", "", "lost", "", "503", "503", "503", "", "silent"]
        mirror.sync()
    proxy.faults = ["503", "cut", "", "lost", "", "503", "", "cut", "", "", "cut"]
    fetch(tmp_path / "other", store)
    for name in (
        "metrics.jsonl",
        "checkpoints/8/params/d",
        "best/model.safetensors",
        "summary.json",
    ):
        assert (tmp_path / "other" / name).read_bytes() == (run / name).read_bytes()
    assert set(records(store)) == {"checkpoints/8", "best"}
    assert {name for name in store.files("best/")} == {"best/config.json", "best/model.safetensors"}


def test_a_store_that_is_gone_is_one_line_and_what_is_there_stays_whole(proxy, tmp_path):
    run, store = tmp_path / "run", open_store(f"{proxy.bucket}/runs/gone", WAITS[:2])
    begun(run)
    mirror = Mirror(run, store)
    mirror.sync()
    proxy.faults = [""] * 6 + ["503"] * 500
    went_on(run)
    with pytest.raises(
        StoreError, match=f"{proxy.shown}/runs/gone: cannot .* after 3 attempts"
    ) as caught:
        mirror.sync()
    assert "\n" not in str(caught.value)
    proxy.faults = []
    assert "checkpoints/4" in records(store)
    with pytest.raises(StoreError, match="nobucket/x: cannot write a .*") as caught:
        open_store(f"{proxy.other}/x", (0.1,) * 50).write("a", b"b")
    assert "attempts" not in str(caught.value)  # no waiting makes a bucket


def test_a_run_in_a_store_goes_on_on_another_machine(world, proxy, tmp_path):
    """Killed once there is a checkpoint; the other has nothing of it but the address."""
    store = open_store(f"{proxy.bucket}/runs/mine")

    def start(machine: str, workdir: str, *extra: str) -> subprocess.Popen:
        argv = arguments(world, Path("x"), "--config.checkpoint.every_steps=1", *extra)[1:]
        argv = [a for a in argv if not a.startswith("--workdir")]
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / machine)}
        return subprocess.Popen(
            [sys.executable, "-m", "jaxft.train", f"--workdir={workdir}", *argv], cwd=ROOT, text=True,
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    first = start("one", f"{proxy.bucket}/runs/mine", "--config.train.log_every=1")
    while not any(name.startswith("checkpoints/") for name in records(store)):
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert store.read("summary.json") is None
    shutil.rmtree(tmp_path / "one")
    proxy.faults = ["", "503", "", "cut", "", "lost", "503"]
    said, _ = (second := start("two", f"{proxy.bucket}/runs/mine")).communicate(timeout=900)
    assert second.returncode == 0, said
    assert "continued from the checkpoint of step" in said
    said, _ = (whole := start("three", str(tmp_path / "whole"))).communicate(timeout=900)
    assert whole.returncode == 0, said
    fetch(tmp_path / "fetched", store)
    assert_same_weights(tmp_path / "fetched", tmp_path / "whole")
    assert json.loads((tmp_path / "fetched/summary.json").read_text())["steps"] == 12


@pytest.fixture
def impatient(server, monkeypatch):
    """Commands try again once: the SDK of S3 has tried each request some thirty times by then, for 6 seconds.

    Of the emulator it takes more: it knows nothing of an upload whose last answer was lost.
    """
    waits = WAITS[:1] if server[0] == "s3" else WAITS
    monkeypatch.setattr(stored_run, "_WAITS", waits)
    monkeypatch.setattr(stored_export, "open_store", lambda address: open_store(address, waits))
    return len(waits) + 1


def test_a_run_in_a_store_is_read_by_all_commands_through_faults(
    world, proxy, tmp_path, impatient, capsys
):
    """They say and write what they do of the same run in a local directory."""
    address = f"{proxy.bucket}/runs/read"
    argv = [a for a in arguments(world, Path("x")) if not a.startswith("--workdir")]
    assert train.main([*argv, f"--workdir={address}", f"--local_copy={tmp_path / 'read'}"]) == 0
    test, said = world / "test.csv", {}
    for name, run in (("local", str(tmp_path / "read")), ("store", address)):
        out = tmp_path / name
        out.mkdir()
        capsys.readouterr()
        for main, *flags in (
            (evaluate.main, f"--run={run}", f"--data={test}", f"--output={out}/metrics.json"),
            (predict.main, f"--run={run}", f"--input={test}", f"--output={out}/rows.csv"),
            (export.main, f"--run={run}", f"--output={out}/model", "--verify=8"),
            (export.main, f"--run={run}", f"--output={out}/step", "--step=12"),
            (compare.main, run, f"--output={out}/compare.html"),
        ):
            proxy.faults = ["", "503", "", "", "cut", "", "lost", "", "", "503", "503"] * 3
            assert run_command(main, ["command", *flags]) == 0, capsys.readouterr().err
        printed = (
            capsys.readouterr()
            .out.replace(run.replace(proxy.bucket, proxy.shown), "RUN")
            .replace(str(out), "OUT")
        )
        said[name] = printed.replace("─", "").split()  # tables are as wide as names
    assert said["store"] == said["local"]
    for name in ("metrics.json", "rows.csv", "model/model.safetensors", "step/model.safetensors"):
        assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    proxy.faults = []
    predicted = load(address).predict(["a text"])[0]
    assert predicted.label == load(tmp_path / "read").predict(["a text"])[0].label
    before = proxy.count
    assert evaluate.main(["evaluate", f"--run={address}", f"--data={test}"]) == 0
    listed = proxy.count - before
    assert listed < 40  # what is there is looked at, and nothing downloaded again
    with capsys.disabled():
        print(f"connections of a second evaluate: {listed}")
    for run, words in (
        (f"{proxy.bucket}/runs/none", "there is no such folder, or nothing in it"),
        (f"{proxy.bucket}/runs", "holds no run and no checkpoint: it has no config.json"),
        (f"{proxy.other}/run", "cannot list its files" if proxy.kind == "s3" else "no such folder"),
    ):
        for main, *flags in (
            (evaluate.main, f"--run={run}", f"--data={test}"),
            (export.main, f"--run={run}", f"--output={tmp_path}/none"),
            (compare.main, run),
        ):
            assert run_command(main, ["command", *flags]) != 0
            err = capsys.readouterr().err
            assert err.count("\n") == 1 and words in err, err
    proxy.faults = ["503"] * 300
    assert run_command(evaluate.main, ["evaluate", f"--run={address}", f"--data={test}"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"after {impatient} attempts" in err


def test_an_export_goes_to_a_store_through_faults_and_is_never_half_there(
    world, proxy, tmp_path, impatient, capsys
):
    run, place = tmp_path / "run", f"{proxy.bucket}/models/mine"
    assert train.main(arguments(world, run)) == 0
    command = ["export", f"--run={run}", f"--output={place}"]
    store = open_store(place, WAITS)
    proxy.faults = ["", "503", "", "", "lost", "", "503", "503", "", "cut", "", "silent"] * 2
    assert run_command(export.main, [*command, "--verify=4"]) == 0, capsys.readouterr().err
    proxy.faults = []
    assert f"-> {proxy.shown}/models/mine" in capsys.readouterr().out
    assert export.main(["export", f"--run={run}", f"--output={tmp_path}/local", "--verify=4"]) == 0
    names = {p.name for p in (tmp_path / "local").iterdir()}
    assert set(store.files()) == {*names, "jaxft-export.json"}
    copy = Path(local_checkpoint(place))
    weights = (copy / "model.safetensors").read_bytes()
    assert weights == (run / "best/model.safetensors").read_bytes()
    assert load(place).predict(["a text"])[0].label == load(run).predict(["a text"])[0].label
    before = proxy.count
    assert run_command(export.main, command) == 0  # over its own, with a file less
    count = proxy.count - before
    for kept in (count // 3, 3 * count // 4, count - 6):  # the store is gone from that request on
        proxy.faults = [""] * kept + ["503"] * 300
        capsys.readouterr()
        assert run_command(export.main, command) == 1
        proxy.faults = []
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "no half of an export is read there" in err, err
        assert (copy := store.files()).keys() <= {*names, "jaxft-export.json"}
        if "config.json" not in copy:
            assert run_command(evaluate.main, ["evaluate", f"--run={place}", "--data=x.csv"]) == 2
            assert "it has no config.json yet" in capsys.readouterr().err
    assert run_command(export.main, command) == 0
    assert set(store.files()) == {*names, "jaxft-export.json"} - {"certificate.json"}
