"""Test setup: eight virtual CPU devices, no network, and compilation kept cheap."""

import gc
import os
import signal
from pathlib import Path

CACHE = Path(__file__).parent.parent / ".pytest_cache" / "xla"
# Set before jax is imported, and inherited by the processes that tests start. Half of the suite's
# time would be LLVM optimising programs that run once; the graph's own optimisations all still run.
# To compile an update of a four-block BERT takes 2.9 s of CPU at level 0, 1.6 s with the emitters of
# one operation each, 1.4 s in one LLVM module. `XLA_FLAGS= make test` tests what users run.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1 --xla_llvm_disable_expensive_passes=true",
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A shell starts what it runs in the background with Ctrl-C ignored; tests send it to commands.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)

import pytest  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=9, help="of each test in tests/launch that kills")
    parser.addoption("--kill-seed", type=int, default=0, help="of when and whom they kill")


def pytest_configure(config: pytest.Config) -> None:
    # An entry that another process is writing, or was when a test killed it: compiled again.
    config.addinivalue_line("filterwarnings", "ignore:Error reading persistent compilation cache")


def pytest_collection_finish() -> None:
    # Collections walk all that libraries have loaded, again and again while JAX traces: of a file of
    # tests that compile much they took 20 % of the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Small checkpoints and data, to be read only: see tests/worlds.py."""
    from tests import worlds

    return worlds.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with data, checkpoints, and a finished run of each task; for tests that only read.

    Trained on one device and evaluated in batches of 4 and 1, fewer than the devices that are here.
    """
    from jaxft import train
    from tests import tiny

    folder, configs = tmp_path_factory.mktemp("trained"), Path(__file__).parent.parent / "configs"
    tiny.texts(folder / "train.csv")
    tiny.texts(folder / "test.csv", 30, seed=9)
    tiny.images(folder / "images")
    common = {
        "train.compile_cache": "",
        "parallel.mode": "jit",
        "eval.every": "100%",
        "log.tensorboard": False,
    }
    texts = {
        "model": {"path": tiny.bert(folder / "bert", blocks=1, dropout=0.0)},
        "data": {"train": str(folder / "train.csv"), "test": str(folder / "test.csv"), "max_shapes": 1},
        "train": {"batch_size": 4, "steps": 120}, "optim.lr": 5e-3, "eval.batch_size": 4,
    }  # fmt: skip
    train(configs / "text_classification.py", folder / "run", {**common, **texts})
    pictures = {
        "model.path": tiny.vit(folder / "vit", blocks=1), "data.train": str(folder / "images"),
        "train": {"batch_size": 4, "steps": 8}, "optim.lr": 1e-2, "eval.batch_size": 1,
        "optim.freeze_below": 0,
    }  # fmt: skip
    train(configs / "image_classification.py", folder / "pictures", {**common, **pictures})
    return folder
