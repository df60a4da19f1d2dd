"""What a person sees: a bar on a terminal, plain lines elsewhere, one line for an error."""

import errno
import io
import logging
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxft.terminal import console
from jaxft.terminal.errors import describe, run_command
from jaxft.terminal.progress import Milestones, Progress, clock, number
from jaxft.terminal.tables import show_metrics
from jaxft.terminal.text import is_fancy

ROOT = Path(__file__).parents[2]
ESCAPE = "\x1b"
METRICS = dict.fromkeys(
    "loss accuracy precision_macro recall_macro f1_macro f1_micro mcc".split(), 0.5
)
VALUES = {"epoch": 0.5, "loss": 0.25, "learning_rate": 1e-4, "examples_per_second": 1234.5}


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def small_run(stream, total=3):
    progress = Progress(total, stream=stream)
    progress.say("model [bold]x[/bold] :smile: " + "long " * 60)
    for step in range(1, total + 1):
        progress.advance(step)
        progress.log(step, {**VALUES, "loss": 1 / step})
    progress.evaluation(
        "eval after step 3", {"loss": 0.5, "accuracy": 0.75}, {"loss": 0.6, "accuracy": 0.8}
    )
    progress.close()


@pytest.fixture
def colour(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_lines_where_there_is_no_terminal(colour):
    out = io.StringIO()
    small_run(out)
    text = out.getvalue()
    assert ESCAPE not in text and "\r" not in text
    lines = text.splitlines()
    assert lines[0] == ("model [bold]x[/bold] :smile: " + "long " * 60)  # not wrapped, no markup
    steps = [line for line in lines if line.startswith("step ")]
    assert len(steps) == 2  # the first, the last, and not one for each step in between
    assert steps[0].startswith("step 1/3  epoch 0.50  loss 1.0000  lr 1.00e-04  1,234 examples/s")
    assert steps[1].startswith("step 3/3  epoch 0.50  loss 0.3333")
    assert re.search(r"loss\s+0\.5000\s+0\.6000\s+-0\.1000", text)
    assert re.search(r"accuracy\s+0\.7500\s+0\.8000\s+-0\.0500", text)


def test_a_bar_on_a_terminal(colour):
    out = Terminal()
    small_run(out)
    text = out.getvalue()
    assert ESCAPE in text
    assert "3/3" in text and "loss 0.3333" in text and "ETA" in text
    assert (
        text.count(ESCAPE + "[?25l") == text.count(ESCAPE + "[?25h") == 1
    )  # the cursor comes back


@pytest.mark.parametrize("variable,value", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_that_wants_plain_text_gets_it(colour, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    out = Terminal()
    small_run(out)
    assert ESCAPE not in out.getvalue()
    assert "step 3/3" in out.getvalue()


def test_an_ascii_stream_does_not_end_the_run(colour):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    assert not is_fancy(stream)
    Progress(1, stream=stream).say("label 'größer'")
    assert raw.getvalue().decode() == "label 'gr\\xf6\\xdfer'\n"


NAMES = [
    "[/INST]",
    "[red]",
    ":smile:",
    "[link=x]a[/link]",
    "\x1b[2Jgone",
    "two\nlines",
    "\ud800",
    "größer",
]


def show_tables(stream):
    per_class = dict.fromkeys(NAMES, {"precision": 0, "recall": 0, "f1": 0, "support": 3})
    confusion = [[i * j for i in range(len(NAMES))] for j in range(len(NAMES))]
    counted = {"names": list(NAMES), "matrix": confusion}
    metrics = {**METRICS, "per_class": per_class, "confusion": counted}
    show_metrics(metrics, tuple(METRICS), stream=stream)
    progress = Progress(1, stream=stream)
    for name in NAMES:
        progress.say(f"label {name!s}")
        progress.evaluation(f"best {name}", {name: 1.0}, {})
    progress.close()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_of_users_are_shown_as_they_are(colour, encoding):
    """Not markup, not emoji, not what a terminal obeys, and in any encoding."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace", write_through=True)
    show_tables(stream)
    text = raw.getvalue().decode(encoding)
    shown = [name.encode("ascii", "backslashreplace").decode() for name in NAMES[:4]]
    for name in [*shown, "\\x1b[2Jgone", "two\\nlines", "\\ud800"]:
        # In the row of its class, as a column and a row of the confusion matrix, said, titled, evaluated.
        # A message may have lines of its own.
        assert text.count(name) == (5 if "lines" in name else 6), name
    assert ESCAPE not in text and "😄" not in text
    assert text.count("gr\\xf6\\xdfer" if encoding == "ascii" else "größer") == 6


def test_a_terminal_sees_no_control_character_of_a_user(colour):
    out = Terminal()
    show_tables(out)
    assert ESCAPE + "[2J" not in out.getvalue() and "[/INST]" in out.getvalue()


def test_an_error_with_control_characters_is_still_one_line(capsys):
    assert run_command(failing(ValueError("no column 'a\x1b[2J\u202eb'")), ["prog"]) == 2
    assert capsys.readouterr().err == "jaxft: error: no column 'a\\x1b[2J\\u202eb'\n"


NAMED = """
import sys
from jaxft.terminal.errors import run_command
def main(argv):
    print("größer \\ud800")
    raise ValueError("größer \\ud800")
sys.exit(run_command(main, sys.argv))
"""


def test_any_name_can_be_printed_in_any_encoding():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", NAMED], env=environment, capture_output=True)
    assert ended.stdout == b"gr\\xf6\\xdfer \\ud800\n" and ended.returncode == 2
    assert ended.stderr == b"jaxft: error: gr\\xf6\\xdfer \\ud800\n"


def test_numbers_and_times_are_short():
    assert [number(v) for v in (0.51234, 12.345, 999.4, 999.6, 12345.6)] == [
        "0.512", "12.3", "999", "1,000", "12,346"
    ]  # fmt: skip
    assert [clock(s) for s in (0, 59.6, 75, 3675)] == ["0:00", "1:00", "1:15", "1:01:15"]


def failing(error):
    def main(argv):
        raise error

    return main


CASES = [
    (ValueError("no column 'txt'"), 2, "no column 'txt'"),
    (ValueError("a message\nin two lines"), 2, "a message in two lines"),
    (
        ValueError("2 tensors do not fit:\n  a/kernel [1]\n  b/kernel [2]\n"),
        2,
        "2 tensors do not fit:\n  a/kernel [1]\n  b/kernel [2]",
    ),
    (ValueError(), 2, "ValueError"),
    (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/no/where"), 2,
     "/no/where: no such file or directory"),
    (PermissionError(errno.EACCES, os.strerror(errno.EACCES), b"/root/x"), 2,
     "/root/x: permission denied"),
    (OSError(errno.EBUSY, "--workdir a is in use"), 2, "--workdir a is in use"),
    (OSError(errno.ENOSPC, "cannot write a: no space"), 1, "cannot write a: no space"),
    (RuntimeError("RESOURCE_EXHAUSTED: No space left on device [x]\nmore"), 1,
     "no space left on device: No space left on device [x]"),
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."), 1,
     "out of memory: Out of memory while trying to allocate 9 bytes; a smaller train.batch_size, a "
     "larger train.accumulate, model.remat or parallel.fsdp need less"),
    (FloatingPointError("the loss is nan at step 3"), 1, "the loss is nan at step 3"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (KeyboardInterrupt("in config file c.py:5"), 130, "interrupted in config file c.py:5"),
]  # fmt: skip


@pytest.mark.parametrize("error,status,message", CASES)
def test_expected_errors_are_one_line_and_a_status(capsys, error, status, message):
    assert run_command(failing(error), ["prog"]) == status
    captured = capsys.readouterr()
    assert captured.err == f"jaxft: error: {message}\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    "error", [TypeError("x"), AssertionError(), KeyError("k"), RuntimeError("y")]
)
def test_bugs_keep_their_traceback(error):
    with pytest.raises(type(error)):
        run_command(failing(error), ["prog"])


def test_debug_keeps_the_traceback_of_expected_errors():
    with pytest.raises(ValueError, match="bad"):
        run_command(failing(ValueError("bad")), ["prog", "--debug"])


def test_an_error_of_a_library_names_it(capsys):
    import numpy as np

    def main(argv):
        np.zeros(3).reshape(2, 2)  # raised by C code called from here: our own frame is the last
        raise AssertionError

    assert run_command(main, ["prog"]) == 2
    assert "cannot reshape" in capsys.readouterr().err
    try:
        np.loadtxt(io.StringIO("a b"))
    except ValueError as error:
        assert describe(error).endswith("(ValueError from numpy; --debug shows where)")


def test_success_and_system_exit_pass_through():
    assert run_command(lambda argv: None, ["prog"]) == 0
    assert run_command(lambda argv: 143, ["prog"]) == 143
    with pytest.raises(SystemExit):
        run_command(failing(SystemExit(0)), ["prog"])


def test_noise_is_silenced_and_warnings_are_not():
    run_command(lambda argv: 0, ["prog"])
    logger, stream = logging.getLogger("transformers"), io.StringIO()
    # A handler of our own: whether pytest's sees a logger that does not propagate depends on its version.
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    try:
        logger.warning("PyTorch was not found. Models won't be available")
        logger.warning("the tokenizer has no padding token")
    finally:
        logger.removeHandler(handler)
    assert stream.getvalue() == "the tokenizer has no padding token\n"


PROGRAM = """
import sys
from jaxft.terminal.errors import run_command
from jaxft.terminal.progress import Progress
def main(argv):
    progress = Progress(100000)
    for step in range(1, 100001):
        progress.say('line')
sys.exit(run_command(main, sys.argv))
"""


def test_a_reader_that_goes_away_ends_the_command_quietly():
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    assert process.wait(timeout=300) == 1
    assert process.stderr.read() == ""
    process.stderr.close()


INTERRUPTED = """
import sys
from jaxft.terminal.errors import run_command
from jaxft.training.logs import Logs
import jax.numpy as jnp, tempfile
def main(argv):
    with Logs(tempfile.mkdtemp(), total_steps=10, steps_per_epoch=5, log_every=1, tensorboard=False,
              enabled=True) as logs:
        one = jnp.float32(1)
        logs.train(1, {'loss': one, 'weight': one, 'grad_norm': one}, 1e-3)
        logs.flush()
        raise KeyboardInterrupt
sys.exit(run_command(main, sys.argv))
"""


def test_ctrl_c_on_a_real_terminal_gives_one_line_and_the_cursor_back():
    leader, follower = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], stdout=follower, stderr=follower, env=environment
    )
    os.close(follower)
    output = b""
    while True:
        try:
            chunk = os.read(leader, 4096)
        except OSError:  # EIO: the other side is closed
            break
        if not chunk:
            break
        output += chunk
    os.close(leader)
    assert process.wait(timeout=300) == 130
    text = output.decode()
    assert text.rstrip().endswith("jaxft: error: interrupted")
    assert "Traceback" not in text
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") >= 0


# In place of jax, a module that gets a signal while it is imported.
WHILE_IMPORTED = """
import os, signal, time
os.kill(os.getpid(), signal.{})
time.sleep(600)
"""
COMMANDS = [*console.COMMANDS, "__main__ train"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_while_jax_is_imported_is_one_line(tmp_path, command, number):
    (tmp_path / "jax.py").write_text(WHILE_IMPORTED.format(number.name))
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    module, *rest = command.split()
    ended = subprocess.run(
        [sys.executable, "-m", f"jaxft.{module}", *rest], env=environment, cwd=tmp_path,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    said, status = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 143)}[
        number
    ]
    assert (ended.stdout, ended.stderr) == ("", f"jaxft: error: {said}\n")
    assert ended.returncode == status


AGAIN = """
import os, signal, sys
from jaxft.terminal import allocator, start
if os.environ.get(allocator._VARIABLE):  # the second time: what came meanwhile has waited
    start.begin(huge_pages=True)
    print("not reached")
else:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    os.kill(os.getpid(), signal.SIGINT)
    start.begin(huge_pages=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only there the process starts anew")
def test_a_signal_while_the_process_starts_anew_is_not_lost():
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", AGAIN]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr == "jaxft: error: interrupted\n"


def test_an_ignored_signal_stays_ignored(tmp_path):
    program = "from jaxft.terminal.start import begin, ready\nbegin()\nimport os, signal\n"
    program += "os.kill(os.getpid(), signal.SIGINT)\nprint(ready(), 'alive')"
    command = f"trap '' INT; exec {sys.executable} -c \"$0\""
    ended = subprocess.run(["sh", "-c", command, program], capture_output=True, text=True, cwd=ROOT)
    assert ended.stdout == "True alive\n" and not ended.stderr


def test_what_takes_long_says_how_far_it_is_at_most_ten_times(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("jaxft.terminal.progress.time.monotonic", lambda: clock[0])

    def lines(seconds: float) -> list[str]:
        said = Milestones("it is computed", 1000, "texts")
        found = []
        for _ in range(100):
            clock[0] += seconds / 100
            found.append(said.done(10))
        return [line for line in found if line]

    assert lines(4.0) == []
    assert lines(12.0) == [
        "it is computed: 420 of 1,000 texts, ETA 0:07",
        "it is computed: 840 of 1,000 texts, ETA 0:02",
    ]
    assert len(lines(3600.0)) == 9  # and at the end the run goes on


def test_the_console_lists_its_commands(capsys):
    for argv in ([], ["--help"], ["help"], ["-h"]):
        assert console.main(argv) == 0
        out = capsys.readouterr().out
        assert all(f"  {name} " in out and about in out for name, about in console.COMMANDS.items())


def test_every_command_is_in_the_console():
    commands = {
        p.stem for p in (ROOT / "jaxft").glob("*.py") if "run_command(main" in p.read_text()
    }
    assert commands == set(console.COMMANDS)


def test_commands_that_train_have_huge_pages_whichever_way_they_are_called():
    files = (ROOT / f"jaxft/{name}.py" for name in console.COMMANDS)
    own = {file.stem for file in files if "begin(huge_pages=True)" in file.read_text()}
    assert own == console.TRAINING


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["trian"], "there is no command 'trian' (did you mean 'train'?); there are train, "),
        (["--config=c.py"], "there is no command '--config=c.py'; there are train, "),
        (["train", "--epochs", "1"], "--epochs (did you mean --config.train.epochs?)"),
        (["evaluate"], "--run is missing"),
    ],
)
def test_the_console_runs_a_command_or_says_which_is_meant(capsys, monkeypatch, argv, said):
    monkeypatch.setattr(console, "begin", lambda **_: None)
    assert console.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxft: error: ") and said in error and error.count("\n") == 1


def test_a_metric_that_the_data_does_not_give_has_no_column():
    out = io.StringIO()
    show_metrics({"loss": 1.0}, ("loss", "rougeL"), stream=out)
    assert out.getvalue().split() == ["loss", "1.0000"]
