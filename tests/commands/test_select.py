"""jaxft.select: the checkpoint that knows something of the task is first, and mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxft import select
from jaxft.models import Pass, hf, load_architecture
from jaxft.models.features import block_features
from jaxft.terminal.errors import run_command
from tests import tiny

CONFIGS = Path(__file__).parent.parent.parent / "configs"


def argv(trained: Path, models: object, output: Path, *more: str, task="text_classification"):
    data = {"image_classification": "images"}.get(task, "train.csv")
    return [
        "select", f"--config={CONFIGS / task}.py", f"--models={models}", f"--output={output}",
        f"--config.data.train={trained / data}", *more,
    ]  # fmt: skip


def refused(arguments: list[str], capsys) -> str:
    assert run_command(select.main, arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("jaxft: error: ") and "\n" not in error, error
    return error


def test_what_was_trained_on_the_task_is_before_what_was_not(trained, tmp_path, capsys):
    random, fitted = trained / "bert", trained / "run" / "best"
    arguments = argv(trained, f"{random},{fitted}", tmp_path / "out", "--rows=60")
    assert select.main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.index(str(fitted)) < shown.index(str(random))
    found = json.loads((tmp_path / "out" / "select.json").read_text())
    first, second = found["candidates"]
    assert (first["name"], second["name"]) == (str(fitted), str(random)) and found["rows"] == 60
    for score in ("logme", "h_score"):
        assert first[score] > second[score]
    apart = first["probe"]["mean"] - second["probe"]["mean"]
    assert apart > first["probe"]["error"] + second["probe"]["error"] and "tie" not in shown
    assert first["parameters"] == second["parameters"] > 1000
    # Two products with each weight of the block for each of at most 64 x 60 tokens, at least one a row.
    assert 2 * 8_000 < first["flops"] < 2 * first["parameters"] * 64
    assert first["peak_bytes"] > 4 * first["parameters"]
    for one in (first, second):
        assert len(one["gradients"]) == len(one["weights"]) == len(one["blocks"]) == 1
        assert one["gradients"][0]["noise"] > 0 and one["weights"][0] >= 0
    # Of 60 rows the head has half; of the others no 32 batches can be made.
    assert (found["gradient_batches"], found["gradient_batch_size"]) == (30, 1)
    assert "30 batches of 1" in shown and "gradient" in found["suggestion"]["gradients"]
    page = (tmp_path / "out" / "select.html").read_text()
    assert str(fitted) in page and f"{first['probe']['mean']:.4f}" in page
    ratio, noise = first["gradients"][0].values()
    assert all(f"{ratio:.3f} ± {noise:.3f}" in where for where in (page, shown))


@pytest.mark.slow
def test_again_into_the_same_folder_gives_the_same_numbers(trained, tmp_path):
    arguments = argv(trained, trained / "bert", tmp_path / "out", "--rows=60")
    assert select.main(arguments) == 0
    found = json.loads((tmp_path / "out" / "select.json").read_text())
    assert select.main(arguments) == 0
    again = json.loads((tmp_path / "out" / "select.json").read_text())
    for one in (*found["candidates"], *again["candidates"]):
        del one["seconds"]
    assert again == found


def test_features_are_the_hidden_states_of_the_model(trained):
    """Of a pass that returns the last block's output for all tokens, at the tokens that are read."""
    for path, shape in ((trained / "bert", None), (trained / "vit", (3, 8, 8, 1))):
        architecture = load_architecture(str(path), num_labels=2)
        params, _ = hf.read_params(str(path), architecture, key=jax.random.key(0))
        rng = np.random.default_rng(0)
        if shape:
            batch = {"pixel_values": rng.normal(size=shape).astype(np.float32)}
            read = (np.arange(3), 0)
        else:
            ids = rng.integers(5, 20, (2, 9)).astype(np.int32)
            segments = np.array([[1] * 5 + [2] * 4, [1] * 7 + [0] * 2], np.int32)
            positions = np.array([[*range(5), *range(4)], [*range(9)]], np.int32)
            starts = np.array([[0, 5], [0, 0]], np.int32)
            batch = {
                "input_ids": ids, "segment_ids": segments, "positions": positions,
                "token_type_ids": np.zeros_like(ids), "starts": starts,
            }  # fmt: skip
            read = (np.arange(2)[:, None], starts)
        hidden = architecture.apply(params, batch, how=Pass(all_positions=True))["hidden"]
        found = block_features(architecture, params, batch)
        assert len(found) == architecture.num_blocks
        np.testing.assert_allclose(found[-1], np.asarray(hidden)[read], atol=1e-6)


def test_numbers_and_images_are_probed_too(trained, tmp_path, capsys):
    numbers = tmp_path / "numbers.csv"
    lines = (trained / "train.csv").read_text().splitlines()[1:]
    rows = [f"{line.rpartition(',')[0]},{len(line.split())}" for line in lines]
    numbers.write_text("\n".join(["text,score", *rows]) + "\n")
    data = f"--config.data.train={numbers}"
    given = argv(trained, trained / "bert", tmp_path / "a", data, task="text_regression")
    assert select.main(given) == 0
    found = json.loads((tmp_path / "a" / "select.json").read_text())
    assert found["candidates"][0]["h_score"] is None and found["block_metric"] == "r2"
    assert found["candidates"][0]["gradients"][0]["noise"] > 0
    for name, light in (("dark", 20), ("bright", 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.random.default_rng(i).integers(light, light + 50, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels, "L").save(tmp_path / "images" / name / f"{i}.png")
    images = f"--config.data.train={tmp_path / 'images'}"
    given = argv(
        trained,
        trained / "vit",
        tmp_path / "b",
        images,
        "--gradients=0",
        task="image_classification",
    )
    assert select.main(given) == 0
    found = json.loads((tmp_path / "b" / "select.json").read_text())
    assert found["candidates"][0]["probe"]["mean"] > 0.9
    assert len(found["candidates"][0]["blocks"]) == 1
    assert found["candidates"][0]["gradients"] == [] and not found["suggestion"]["gradients"]


def test_what_cannot_be_probed_is_one_line(trained, tmp_path, capsys):
    out = tmp_path / "out"
    bert = str(trained / "bert")
    assert "no_such" in refused(argv(trained, f"{bert},{tmp_path / 'no_such'}", out), capsys)
    assert "model of image" in refused(argv(trained, f"{bert},{trained / 'vit'}", out), capsys)
    bare = Path(tiny.bert(tmp_path / "bare", blocks=1))
    (bare / "tokenizer.json").unlink()
    assert "no tokenizer" in refused(argv(trained, f"{bert},{bare}", out), capsys)
    assert "--rows=5" in refused(argv(trained, bert, out, "--rows=5"), capsys)
    assert "--gradients=3" in refused(argv(trained, bert, out, "--gradients=3"), capsys)
    words = argv(trained, bert, out, "--config.task=token_classification")
    assert "one target for each whole example" in refused(
        [*words, "--config.eval.metric=f1"], capsys
    )
    few = argv(trained, bert, out, "--config.task=few_shot")
    assert "as those of 'text_classification'; name that" in refused(few, capsys)
    assert not out.exists()
    out.mkdir()
    (out / "select.json").write_text("{}")
    assert "left as it is" in refused(argv(trained, bert, out), capsys)
    assert (out / "select.json").read_text() == "{}"
