"""jaxft.export: an export is proved, signed and in the asked dtype; pickles are converted, not run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from jaxft import export
from jaxft.models.checkpoint import companions, tensors
from jaxft.terminal.errors import run_command


def exported(trained, output, *flags: str, run: str = "run") -> dict:
    """The certificate of an export on eight rows."""
    own = [f"--run={trained / run}", f"--output={output}", "--verify=8", *flags]
    assert export.main(["export", *own]) == 0
    return json.loads((output / companions.CERTIFICATE).read_text())


def refused(argv: list[str], capsys) -> str:
    assert run_command(export.main, ["export", *argv]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("jaxft: error: ") and "\n" not in error, error
    return error


@pytest.mark.parametrize("run", ["run", "pictures"])
def test_the_certificate_compares_the_export_with_the_run_and_with_pytorch(run, trained, tmp_path):
    found = exported(trained, tmp_path / "out", run=run)
    assert 2 <= found["rows"] <= 8 and found["largest logit"] > 0.01
    assert found["exported"] == {"largest difference": 0.0, "largest KL": 0.0}
    assert 0 < found["pytorch"]["largest difference"] < 1e-5
    frozen = [
        row["path"]
        for row in json.loads((trained / run / "parameters.json").read_text())
        if not row["trained"]
    ]
    assert bool(frozen) == (run == "pictures")
    kept = found["untouched tensors"]
    assert len(kept) == len(frozen)
    assert all(entry["identical"] for entry in kept.values())
    # Where no values are to be compared, those that are copied are not read.
    assert export.main(["export", f"--run={trained / run}", f"--output={tmp_path}/plain"]) == 0
    weights = [(tmp_path / name / tensors.SINGLE).read_bytes() for name in ("out", "plain")]
    assert weights[0] == weights[1]


def test_a_changed_tensor_does_not_pass(trained, tmp_path, monkeypatch):
    """The export is tampered with between writing and reading back."""
    copy = companions.copy

    def tampered(source: str, directory: str) -> None:
        copy(source, directory)
        path = Path(directory) / tensors.SINGLE
        path.write_bytes(path.read_bytes()[:-64] + bytes(64))

    monkeypatch.setattr(companions, "copy", tampered)
    found = exported(trained, tmp_path / "out")
    assert found["exported"]["largest difference"] > 0


def test_a_chosen_dtype_and_size_hold_for_every_file(trained, tmp_path):
    out = tmp_path / "out"
    found = exported(trained, out, "--dtype=bfloat16", "--max_shard_size=20KB")
    assert 0 < found["exported"]["largest difference"] < 0.05 * found["largest logit"]
    assert {entry.dtype for entry in tensors.entries(str(out)).values()} == {"BF16"}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    sizes = [path.stat().st_size for path in out.glob("*.safetensors")]
    assert len(sizes) > 1


def test_the_card_says_what_was_done_and_is_replaced_only_unchanged(trained, tmp_path, capsys):
    out = tmp_path / "out"
    flags = [f"--run={trained}/run", f"--output={out}"]
    assert export.main(["export", *flags]) == 0
    card = (out / companions.CARD).read_text()
    assert card.startswith("---\n") and "text-classification" in card
    assert str(trained) not in card  # a card is published
    assert "| accuracy |" in card and "optim.lr" in card
    assert export.main(["export", *flags]) == 0
    (out / companions.CARD).write_text(card + "Mine.\n")
    assert "holds 'README.md'" in refused(flags, capsys)
    assert (out / companions.CARD).read_text().endswith("Mine.\n")


def test_the_licence_of_the_base_is_read_from_its_card(tmp_path):
    (tmp_path / "README.md").write_text("---\ntags: [x]\nlicense: apache-2.0\n---\n# A\n")
    assert companions.licence(str(tmp_path)) == "apache-2.0"
    (tmp_path / "README.md").write_text("# A\nlicense: mit\n")
    assert companions.licence(str(tmp_path)) == ""


def pickled(trained, directory, weights: object) -> None:
    directory.mkdir()
    shutil.copyfile(trained / "run" / "best" / "config.json", directory / "config.json")
    torch.save(weights, directory / "pytorch_model.bin")


def test_pickled_weights_are_converted_and_tied_ones_written_once(trained, tmp_path, capsys):
    a = torch.arange(6.0).reshape(2, 3)
    weights = {"a": a, "b": a.half(), "c": a.bfloat16().T, "d": torch.tensor(3), "again": a}
    pickled(trained, tmp_path / "in", weights)
    assert export.main(["export", f"--convert={tmp_path}/in", f"--output={tmp_path}/out"]) == 0
    assert "again (as a)" in capsys.readouterr().out
    found = tensors.entries(str(tmp_path / "out"))
    assert found.keys() == {"a", "b", "c", "d"}
    for name, entry in found.items():
        array = tensors.read(entry, name)
        np.testing.assert_array_equal(array.astype(np.float32), weights[name].float().numpy())
    assert [found[name].dtype for name in "abcd"] == ["F32", "F16", "BF16", "I64"]
    assert (tmp_path / "out" / "config.json").exists()


class Command:
    """Unpickled, it runs a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_would_run_something_is_refused(trained, tmp_path, capsys):
    pickled(trained, tmp_path / "in", {"a": Command(tmp_path / "ran")})
    flags = [f"--convert={tmp_path}/in", f"--output={tmp_path}/out"]
    assert "could run code" in refused(flags, capsys)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "give --run DIR, or --convert DIR"),
        (("--run=RUN", "--dtype=bf16"), "did you mean 'bfloat16'"),
        (("--run=RUN", "--max_shard_size=0GB"), "is no size"),
        (("--run=RUN", "--verify=-1"), "below 0"),
        (("--convert=RUN/best",), "has no pytorch_model.bin"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(flags, said, trained, tmp_path, capsys):
    own = [flag.replace("RUN", str(trained / "run")) for flag in flags]
    assert said in refused([*own, f"--output={tmp_path}/out"], capsys)
    assert not (tmp_path / "out").exists()
