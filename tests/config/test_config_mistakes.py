"""Hostile config files, values and command lines: each is one line, fast, and names what is meant."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest

from jaxft import config as config_lib
from jaxft.base.nested import flatten
from jaxft.config_check import validate
from jaxft.config_fields import BY_NAME, FIELDS
from jaxft.config_names import _CALLED, meant
from jaxft.experiment import cores
from jaxft.terminal import config_file
from jaxft.terminal.errors import exit_status, run_command
from jaxft.terminal.flags import Flag, field_lines, parse

HEAD = "from jaxft.config import default_config\n\ndef get_config(arg=None):\n    c = default_config()\n"
FLAGS = (Flag("workdir", "where", required=True),)


@pytest.fixture
def write(tmp_path):
    """A config file with `body` in get_config, or with `whole` as its bytes."""

    def write(body: str = "pass", whole: bytes | None = None) -> str:
        text = f"{HEAD}    {body}\n    return c\n".encode()
        (tmp_path / "mine.py").write_bytes(text if whole is None else whole)
        return str(tmp_path / "mine.py")

    return write


def refusal(call) -> str:
    """The one line that a mistake ends with."""
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert exit_status(caught.value) == 2
    assert "\n" not in message and len(message) < 600, message
    assert "\\n" not in message or "line break" in message, message  # no tuple with escapes in it
    message.encode()  # it can be printed
    return message


# What is put into a field from the command line, and what the line must say.
VALUES = [
    ("train.epochs=inf", "must be between 1e-09 and 1000000, or none"),
    ("train.epochs=1e300", "must be at most 1000000"),
    ("train.epochs=nan", "must be between"),
    ("train.epochs=-1", "must be at least 1e-09"),
    ("train.epochs=1" + 5000 * "0", "must be"),
    ("train.steps=2147483648", "must be at most 2147483647"),
    ("train.steps=" + 5000 * "9", "is not a whole number"),
    ("train.steps=0", "must be at least 1, or none"),
    ("train.batch_size=1000000000000", "must be at most 1000000"),
    ("train.batch_size=1_0.5", "is not a whole number"),
    ("train.accumulate=1000000", "more parts than it has"),
    ("train.accumulate=33", "train.batch_size=32"),
    ("train.seed=-1", "must be at least 0"),
    ("train.log_every=0", "must be at least 1"),
    ("train.label_smoothing=1", "must be between 0 and 0.99"),
    ("data.max_length=1000000000", "must be at most 1000000"),
    ("data.max_length=-1", "must be at least 4"),
    ("data.workers=100000", "must be between 1 and 256"),
    ("data.max_shapes=0", "must be between 1 and 64"),
    ("data.examples_per_class=0", "must be at least 1"),
    ("eval.batch_size=0", "must be at least 1"),
    ("eval.min_delta=inf", "must be between"),
    ("eval.every=0", "more than 0"),
    ("eval.every=0%", "more than 0"),
    ("checkpoint.keep=0", "must be at least 1"),
    ("checkpoint.every_steps=1e9", "is not a whole number"),
    ("parallel.fsdp=0", "must be at least 1"),
    ("parallel.tensor=-1", "must be at least 1"),
    ("parallel.data=-7", "must be at least 1, or -1"),
    ("parallel.data=0", "must be at least 1, or -1"),
    ("optim.lr=nan", "must be between 0 and 10"),
    ("optim.lr=-1e-5", "must be between 0 and 10"),
    ("optim.clip=inf", "must be between"),
    ("optim.b1=1", "must be between 0 and 0.9999999"),
    ("optim.eps=0", "must be between 1e-20 and 1"),
    ("optim.freeze_below=-1", "at least 0, or 'all', or none; blocks are counted from"),
    ("optim.freeze_below=top", "is not a whole number (or 'all' or none)"),
    ("optim.warmup=1e400", "is not a duration"),
    ("optim.warmup=1e400 epochs", "is more than 2147483647 steps"),
    ("optim.warmup=1e300 steps", "is more than 2147483647 steps"),
    ("optim.warmup=-5 steps", "is not a duration"),
    ("optim.warmup=1.5 steps", "is not a duration"),
    ("optim.warmup=101%", "is not a duration"),
    ("optim.warmup=" + 100_000 * "1", "is not a duration"),
    ("optim.unfreeze_every=0 steps", "more than 0"),
    ("optim.lr_mult=((1,2),)", "(1, 2) is not a (pattern, factor) pair"),
    ("optim.lr_mult=(('a',1,2),)", "is not a (pattern, factor) pair"),
    ("optim.lr_mult=(('a',1e999),)", "the factor inf"),
    ("optim.lr_mult=(('a',True),)", "the factor True"),
    ("optim.lr_mult=(('a',1" + 400 * "0" + "),)", "the factor 1000"),
    ("optim.lr_mult=a,b", "'a' is not a (pattern, factor) pair"),
    ("optim.lr_mult=" + 5000 * "(", "is not a list"),
    ("optim.groups=(('a',{1:2}),)", "'a' sets 1; there are lr, "),
    ("optim.groups=(('a',{'lr':'x'}),)", "lr='x' of 'a' is not a number between 0 and 10"),
    ("optim.groups=(('a',{'lr':None}),)", "lr=None of 'a' is not a number"),
    ("optim.groups=(('a',{'schedule':['x']}),)", "is not one of linear, cosine, constant"),
    ("optim.groups=((1,{}),)", "is not a (pattern, settings) pair"),
    ("optim.groups=(('a','b','c'),)", "is not a (pattern, settings) pair"),
    ("optim.unfreeze_at=((0,1),)", "1 is not a list of depths"),
    ("optim.unfreeze_at=((0,()),)", "() is not a list of depths"),
    ("optim.unfreeze_at=(('soon',(1,)),)", "'soon' is not a duration"),
    ("optim.unfreeze_at=((0,('a',)),)", "is not a list of depths"),
    ("optim.unfreeze_at=(1,2,3)", "is not a (duration, depths) pair"),
    ("optim.frozen=((('a',),),)", "(('a',),) is not text"),
    ("data.text=a,b,c", "more than two columns"),
    ("data.text=a,", "'' is not text"),
    ("data.text=(None,)", "None is not text"),
    ("data.rename=text,label", "'text' is not an (old, new) pair of names"),
    ("data.mixture=a.csv,b.csv", "'a.csv' is not a (source, weight) pair"),
    ("data.mixture=(('a.csv',-1),)", "the weight -1 of 'a.csv' is not a number above 0"),
    ("data.mixture_temperature=2", "needs config.data.mixture"),
    ("data.fold=2", "needs config.data.folds"),
    ("data.sample_by=lines", "did you mean 'line'"),
    ("data.label=caf\udce9", "'caf\\udce9' is not UTF-8 text"),
    ("data.classes=a,\udcff", "is not UTF-8 text"),
    ("data.train=a\0b.csv", "holds a null character"),
    ("data.train=a\nb.csv", "holds a line break"),
    ("model.path=x\ny", "holds a line break"),
    ("model.path=https://huggingface.co/google/bert", "the hub id alone: OWNER/NAME"),
    ("data.cache=gs://bucket/cache", "is a remote place (gs://)"),
    ("optim.lr_mult=(('\udce9',1),)", "is not UTF-8 text"),
    ("model.dropout=none2", "is not a number (or none)"),
    ("model.scratch=2", "is not true or false"),
    ("optim.lr=", "is not a number"),
    ("optim=adamw", "config.optim is a section; set one of its fields: optim.lr"),
    ("=3", "does not exist"),
    (".=3", "does not exist"),
    ("a" * 10_000 + "=3", "does not exist"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "said"), VALUES, ids=[v[0][:40] for v in VALUES])
def test_a_hostile_value_is_one_line(write, override, said):
    field, _, text = override.partition("=")
    assert said in refusal(lambda: config_file.load(write(), [(field, text)]))


# What get_config does (or the bytes of the whole file), and what the line must say.
BODIES = [
    ("c.trian.epochs = 1", "mine.py:5: config.trian.epochs does not exist (did you mean 'train.epochs'?)"),
    ("c.train.learning_rate = 1", "config.train.learning_rate does not exist (did you mean 'optim.lr'?)"),
    ("c['trian'] = 1", "config.trian does not exist"),
    ("c.train.epoch += 1", "config.train.epoch does not exist (did you mean 'train.epochs'?)"),
    ("c.update({'optim': {'momentum': 1}})", "(did you mean 'optim.b1'?)"),
    ("c.update({'optim.lr': 1})", "does not accept dots"),
    ("c.train = None", "config.train=None replaces a section"),
    ("c.train = 5", "config.train=5 replaces a section"),
    ("c.train = []", "config.train=[] replaces a section"),
    ("c.train = {'epochs': 1}", "fields are missing; start from default_config()"),
    ("c.optim.lr = {'peak': 1}", "is not a number"),
    ("del c.train.epochs", "neither added nor deleted"),
    ("c.unlock(); del c.train.epochs", "config.train.epochs is missing"),
    ("c.unlock(); c.train.epocs = 1", "config.train.epocs does not exist (did you mean 'train.epochs'?)"),
    ("c.unlock(); c.extra = 1", "config.extra does not exist"),
    ("c.train = c", "config.train.checkpoint does not exist"),
    ("x = []; x.append(x); c.data.text = x", "without end"),
    ("c.train.epochs.x = 3", "no attribute 'x'"),
    ("c.optim.lr = object()", "is not a number"),
    ("c.optim.lr = '1e-4'", "config.optim.lr='1e-4' is not a number"),
    ("c.train.seed = True", "is not a whole number"),
    ("c.train.seed = 10 ** 5000", "config.train.seed=<int> must be at most"),
    ("c.optim.lr = 10 ** 5000", "mine.py:5: int too large"),
    ("c.train.epochs = float('nan')", "must be between"),
    ("c.train.seed = 1.5", "is not a whole number"),
    ("c.data.text = 'text'", "is not a list"),
    ("c.data.text = {'a'}", "is not a list"),
    ("c.model.path = '\\ud800'", "is not UTF-8 text"),
    ("c.model.path = b'x'", "is not text"),
    ("c.data.train = ('a.csv', 'b.csv')", "is not text; several files are written as one text"),
    ("c = None", "get_config() gives None; does it end with 'return config'?"),
    ("c = {'a': 'x' * 10**6}", "does it end with 'return config'?"),
    ("from ml_collections import ConfigDict; c = ConfigDict()", "more fields are missing"),
    ("from ml_collections import config_dict; c.optim.lr = config_dict.required_placeholder(float)",
     "required"),
    ("raise SystemExit(0)", "mine.py:5: it ends the program"),
    ("import sys; sys.exit('bye')", "it ends the program"),
    ("raise GeneratorExit", "GeneratorExit"),
    ("return get_config()", "without end"),
    ("raise KeyError('x')", "mine.py:5: 'x'"),
    ("raise ValueError('a\\nb' * 1000)", "mine.py:5: a b"),
    ("raise Exception", "mine.py:5: Exception"),
    ("1 / 0", "mine.py:5: division by zero"),
    ("import numppy", "No module named 'numppy'"),
]  # fmt: skip
WHOLES = [
    (b"def get_config(arg=None)\n    return 1\n", "mine.py, line 1"),
    (b"\xff\xfe", "mine.py"),
    (b"x = 'caf\xe9'\n", "utf-8"),
    (b"x = 1\0", "null byte"),
    (b"", "it has no function get_config()"),
    (b"get_config = 3\n", "it has no function get_config()"),
    (b"def get_config(a, b): pass\n", "cannot be called with no argument: missing a required"),
    (b"async def get_config(arg=None): pass\n", "does it end with 'return config'?"),
    (b"def get_config(arg=None): yield 1\n", "does it end with 'return config'?"),
    (b"x = " + b"(" * 10_000, "mine.py"),
]


@pytest.mark.parametrize(("body", "said"), BODIES, ids=[b[0][:40] for b in BODIES])
def test_a_hostile_config_file_is_one_line(write, body, said):
    line = refusal(lambda: config_file.load(write(body)))
    assert said in line and not line.startswith("("), line


@pytest.mark.parametrize(("whole", "said"), WHOLES, ids=[str(w[0][:30]) for w in WHOLES])
def test_what_is_no_config_file_is_one_line(write, whole, said):
    assert said in refusal(lambda: config_file.load(write(whole=whole)))


def test_what_is_no_file_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe.py")  # opening it would wait for ever
    (tmp_path / "c.json").write_text("{}")
    places = {
        tmp_path: "is a directory", tmp_path / "pipe.py": "is not a regular file",
        tmp_path / "c.json": "must end in .py", tmp_path / "pip.py": "did you mean 'pipe.py'?",
        "gs://bucket/c.py": "config files are local", "a\0b": "no config file",
    }  # fmt: skip
    for path, said in places.items():
        assert said in refusal(lambda path=path: config_file.load(str(path)))


def test_an_argument_that_get_config_does_not_take(write):
    path = write(whole=f"{HEAD}    return c\n".replace("arg=None", "").encode())
    assert config_file.load(path).task
    assert "cannot be called with the argument 'x'" in refusal(
        lambda: config_file.load(f"{path}:x")
    )


def test_what_a_config_file_prints_is_not_output(write, capsys):
    assert config_file.load(write("print('hello')")).task
    out, err = capsys.readouterr()
    assert (out, err) == ("", "hello\n")


def test_a_config_file_is_read_as_it_is_now(write, tmp_path):
    """Bytecode is trusted by size and second: two quick edits of equal length would be one."""
    for seed in (1, 2, 3):
        path = write(f"c.train.seed = {seed}")
        os.utime(path, (0, 0))
        assert config_file.load(path).train.seed == seed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.py"]


def test_a_config_file_that_loops_is_named_and_ctrl_c_says_where(write, monkeypatch, capsys):
    path, said = write("while True: pass"), threading.Event()

    def interrupt(*args, file, flush):  # what the timer calls, once the file has been slow
        file.write(*args)
        said.set()
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(config_file, "_SLOW_SECONDS", 0.05)
    monkeypatch.setattr(config_file, "print", interrupt, raising=False)
    assert run_command(lambda argv: config_file.load(path), ["jaxft"]) == 130
    assert said.is_set()
    first, last = capsys.readouterr().err.split("…")
    assert first == f"reading config file {path} "
    assert last == f"jaxft: error: interrupted in config file {path}:5\n"


@pytest.mark.parametrize(
    ("body", "given", "epochs", "steps"),
    [
        ("c.train.steps = 50", "train.steps=none", 3.0, None),
        ("c.train.steps = 50; c.train.epochs = None", "train.steps=none", 3.0, None),
        ("c.train.steps = 50; c.train.epochs = 5.0", "train.steps=none", 5.0, None),
        ("c.train.steps = 50", "train.epochs=none", None, 50),
        ("c.train.epochs = 5.0", "train.steps=none", 5.0, None),
    ],
)
def test_a_length_that_is_taken_back_leaves_the_other(write, body, given, epochs, steps):
    config = config_file.load(write(body), [tuple(given.split("="))])
    assert (config.train.epochs, config.train.steps) == (epochs, steps)


def test_numbers_of_numpy_are_numbers(write):
    body = "import numpy as np; c.optim.lr = np.float32(0.5); c.train.seed = np.int64(3)"
    config = config_file.load(write(body))
    assert (config.optim.lr, config.train.seed) == (0.5, 3)
    assert config_lib.to_json(config)["optim"]["lr"] == 0.5


# The name in another library, and the field that is its own.
PEERS = {
    "optim.lr": "learning_rate optim.learning_rate train.learning_rate training.learningRate lr model.lr",
    "train.epochs": "num_train_epochs epochs max_epochs n_epoch train.num_epochs nb_epochs Epochs",
    "train.batch_size": "per_device_train_batch_size bs train.bs per-device-train-batch-size",
    "eval.batch_size": "per_device_eval_batch_size val_bs",
    "train.accumulate": "gradient_accumulation_steps accumulate_grad_batches",
    "data.max_length": "max_seq_length train.max_length max_seq_len data.max_lenght",
    "optim.warmup": "warmup_ratio warmup_steps optim.warmup_epochs train.warmup",
    "optim.weight_decay": "weight_decay wd train.weight_decay optim.wd",
    "--workdir": "output_dir train.output_dir default_root_dir",
    "optim.schedule": "lr_scheduler_type sched optim.scheduler",
    "train.label_smoothing": "label_smoothing_factor smoothing",
    "optim.clip": "max_grad_norm clip_grad gradient_clip_val clipnorm",
    "optim.b1": "adam_beta1 momentum", "optim.b2": "adam_beta2", "optim.eps": "adam_epsilon",
    "model.dtype": "fp16 bf16 precision train.fp16",
    "eval.every": "eval_steps eval.steps eval_strategy val_check_interval validation_freq",
    "checkpoint.every_steps": "save_steps save_strategy",
    "checkpoint.keep": "save_total_limit save_top_k",
    "train.log_every": "logging_steps log_every_n_steps log_interval",
    "train.seed": "seed random_seed", "train.steps": "max_steps",
    "model.path": "model_name_or_path model_name pretrained_model_name_or_path",
    "data.train": "train_file dataset_name data", "data.eval": "validation_file validation_data",
    "data.test": "test_file", "data.eval_fraction": "validation_split valid_pct",
    "eval.patience": "early_stopping_patience patience train.patience",
    "optim.layer_decay": "layer_decay llrd", "model.dropout": "drop_rate hidden_dropout_prob",
    "optim.optimizer": "opt optim optimizer", "model.remat": "gradient_checkpointing",
    "data.workers": "dataloader_num_workers num_workers", "eval.metric": "metric_for_best_model",
}  # fmt: skip


@pytest.mark.parametrize("field", PEERS)
def test_names_of_other_libraries_lead_to_ours(write, field):
    for name in PEERS[field].split():
        assert meant(name) == [field], name
        if name not in ("optim", "data"):  # sections of ours
            line = refusal(lambda name=name: config_file.load(write(), [(name, "1")]))
            assert f"(did you mean {field!r}?)" in line
        flag = field if field.startswith("--") else f"--config.{field}"
        line = refusal(lambda name=name: parse(["x", f"--{name}", "1"], FLAGS, with_config=True))
        assert f"there is no flag --{name} (did you mean {flag}?)" in line


def test_a_setting_of_the_run_is_named_by_a_command_without_a_config():
    for name in ("beams", "length_penalty"):
        line = refusal(lambda name=name: parse(["x", f"--{name}=4"], FLAGS))
        assert f"--{name}: config.eval.{name} is a setting of the run" in line


def test_the_names_in_the_table_are_names_of_nothing_else():
    names = [name for names in _CALLED.values() for name in names.split()]
    assert len(names) == len(set(names)) and not set(names) & set(BY_NAME)
    assert set(_CALLED) - {"--workdir"} <= set(BY_NAME)


def test_help_lists_every_field_with_its_default(capsys):
    for argv, fields in (
        (["x", "--help"], FIELDS),
        (["x", "--config.help"], FIELDS),
        (["x", "--config.optim.help"], [f for f in FIELDS if f.section == "optim"]),
        (["x", "--config.optim.lr.help"], [BY_NAME["optim.lr"]]),
    ):
        with pytest.raises(SystemExit) as end:
            parse(argv, FLAGS, with_config=True)
        assert not end.value.code
        lines = [
            line for line in capsys.readouterr().out.splitlines() if line.startswith("  --config.")
        ]
        assert len(lines) == len(fields)
        for field, line in zip(fields, lines, strict=True):
            assert f"--config.{field.name}=" in line and field.help in line
    assert "(between 0 and 10)" in field_lines("optim.lr")[0]
    assert "did you mean 'optim'" in refusal(lambda: field_lines("optimm"))


def test_the_defaults_are_what_the_fields_say():
    config = config_lib.default_config()
    validate(config)
    assert flatten(config) == {field.name: field.default for field in FIELDS}
    for field in FIELDS:
        assert field.help and "\n" not in field.help
        assert field.default is None or type(field.default) is field.kind


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--workdir=gs://b/r"], "--workdir='gs://b/r' is a remote place (gs://)"),
        (["--workdir=s3://b"], "is a remote place"),
        (["--workdir=caf\udce9"], "is not UTF-8 text"),
        (["--workdir=a\nb"], "holds a line break"),
        (["--workdir=a\0b"], "holds a null character"),
        (["--workdir="], "--workdir is missing"),
        (["--workdir"], "workdir"),
        (["--workdir=a", "--wrokdir=b"], "(did you mean --workdir?)"),
        (["--workdir=a", "--qqqqq"], "there is no flag --qqqqq; there are --help, --"),
        (["--workdir=a", "file.csv" * 1000], "unexpected argument 'file.csv"),
    ],
)  # fmt: skip
def test_a_hostile_command_line_is_one_line(argv, said):
    assert said in refusal(lambda: parse(["x", *argv], FLAGS))


def test_all_blocks_can_be_frozen_by_word(write):
    config = config_file.load(write(), [("optim.freeze_below", "all")])
    assert config.optim.freeze_below == "all"
    assert config_file.load("configs/text_classification.py:head").optim.freeze_below == "all"


def test_the_second_moment_is_the_optimizers_own(write):
    """0.99 for Lion (Chen et al. 2023), 0.999 for Adam; a value that is set counts for both."""
    gradient = {"a": np.ones(1, np.float32)}
    for name, given, b2 in (
        ("adamw", "none", 0.999), ("lion", "none", 0.99), ("adamw", "0.9", 0.9), ("lion", "0.9", 0.9)
    ):  # fmt: skip
        config = config_file.load(write(), [("optim.b2", given)])
        core = cores.core(name, cores.numbers(config.optim), config.optim)
        _, state = core.update(gradient, core.init(gradient), gradient)
        moment = state.mu if name == "lion" else state.nu
        assert np.isclose(moment["a"][0], 1 - b2)


@pytest.mark.parametrize(
    "raw",
    [
        {"optim": {"lr": "x"}}, {"train": {"steps": -1}}, {"task": 3}, {"data": {"text": [[1]]}},
        {"optim": 3}, {"train": []},
    ],
)  # fmt: skip
def test_a_damaged_config_of_a_run_is_one_line(raw):
    assert "config.json" in refusal(lambda: config_lib.from_json(raw))
