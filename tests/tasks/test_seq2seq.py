"""Sequence to sequence from a table to the exported checkpoint, as its users run it."""

import csv
import json
import random
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxft import evaluate, export, load, predict, train
from jaxft.analysis import written
from jaxft.config import default_config, override, validate
from jaxft.experiment.encoder import Slicing, make_encoder
from jaxft.experiment.prepared import prepare
from jaxft.experiment.streaming import stream_batches
from jaxft.models import hf
from jaxft.tasks.table import TASKS
from tests import tiny

ROOT = Path(__file__).parents[2]
WORDS = sum(tiny.WORDS.values(), [])


def write(path, rows=150, *, seed=0):
    """A text is to be given backwards."""
    rng = random.Random(seed)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["source", "target"])
        for _ in range(rows):
            words = rng.choices(WORDS[:6], k=rng.randint(1, 3))
            table.writerow([" ".join(words), " ".join(reversed(words))])


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def config_of(folder, **more):
    fields = {
        "task": "seq2seq", "eval.metric": "rougeL", "model.path": str(folder / "t5"),
        "data": {"train": str(folder / "train.csv"), "test": str(folder / "test.csv")},
        "data.max_target_length": 6, "data.max_shapes": 1, "train.compile_cache": "", "optim.lr": 1e-2,
        "train.batch_size": 32, "train.steps": 120, "eval.every": "50%", "eval.generate": 12,
        "eval.beams": 2, "parallel.mode": "jit", "log.tensorboard": False, **more,
    }  # fmt: skip
    return override(default_config(), fields)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A finished run and its data."""
    folder = tmp_path_factory.mktemp("seq2seq")
    write(folder / "train.csv")
    write(folder / "test.csv", 30, seed=9)
    tiny.t5(folder / "t5")
    return folder, train(config_of(folder), folder / "run")


def test_a_run_learns_and_scores_what_it_generates(world):
    folder, result = world
    metrics = json.loads((folder / "run" / "summary.json").read_text())["test"]
    assert metrics["accuracy"] > 0.7 and metrics["rougeL"] > 0.5
    assert metrics["perplexity"] == pytest.approx(np.exp(metrics["loss"]))
    assert metrics["generated"] == 12 and metrics["examples"] == 30
    rows = rows_of(folder / "run/predictions/test.jsonl")
    given = [row for row in rows if "predicted" in row]
    assert len(rows) == 30 and len(given) == 12
    assert written.scores([row["predicted"] for row in given], [row["label"] for row in given])[
        "rougeL"
    ] == pytest.approx(metrics["rougeL"])
    assert "ROUGE-L" in (folder / "run" / "report.html").read_text()


def test_evaluate_and_predict_say_what_the_run_said(world, tmp_path, capsys):
    folder, _ = world
    run = str(folder / "run")
    assert evaluate.main(["evaluate", f"--run={run}", f"--output={tmp_path / 'm.json'}"]) == 0
    again = json.loads((tmp_path / "m.json").read_text())
    first = json.loads((folder / "run" / "summary.json").read_text())["test"]
    assert {name: again[name] for name in first} == pytest.approx(first)
    # What is to be predicted has no column of what is to be given.
    rows = list(csv.DictReader((folder / "test.csv").read_text().splitlines()))
    with (tmp_path / "new.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["source"], *([row["source"]] for row in rows)])
    out = tmp_path / "out.csv"
    for _ in range(2):  # its own output is written over
        assert predict.main(
            ["predict", f"--run={run}", f"--input={tmp_path / 'new.csv'}", f"--output={out}"]
        ) == 0  # fmt: skip
    found = {
        row["source"]: row["predicted_text"] for row in csv.DictReader(out.read_text().splitlines())
    }
    for row in rows_of(folder / "run/predictions/test.jsonl"):
        if "predicted" in row:
            assert found[row["text"]] == row["predicted"]
    model = load(run)
    text = rows[0]["source"]
    assert model.predict([text])[0].text == found[text]


def test_the_export_generates_the_same_in_transformers(world, tmp_path):
    folder, _ = world
    out = tmp_path / "out"
    assert export.main(
        ["export", f"--run={folder / 'run'}", f"--output={out}", "--verify=4"]
    ) == 0  # fmt: skip
    certificate = json.loads((out / "certificate.json").read_text())
    assert certificate["exported"]["largest difference"] == 0
    assert certificate["pytorch"]["largest difference"] < 1e-4
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(out).eval()
    assert type(theirs) is transformers.T5ForConditionalGeneration
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    rows = rows_of(folder / "run/predictions/test.jsonl")
    given = [row for row in rows if "predicted" in row]
    batch = tokenizer(
        [row["text"] for row in given], return_tensors="pt", padding=True,
        return_token_type_ids=False,
    )  # fmt: skip
    ids = theirs.generate(**batch, max_new_tokens=6, num_beams=2, do_sample=False)
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert texts == [row["predicted"] for row in given]


def test_packed_batches_have_the_loss_of_transformers(world):
    folder, _ = world
    config = config_of(folder)
    prepared = prepare(config)
    architecture = prepared.architecture
    params, _ = hf.read_params(prepared.directory, architecture, key=jax.random.key(0))
    encoder = make_encoder(
        config, prepared.task.inputs, prepared.directory, architecture.limits, prepared.splits, None
    )
    batch = encoder.training(prepared.splits.train, config, 1, Slicing())[0]
    assert batch["segment_ids"].max() > 1  # texts share rows
    total, weight = TASKS["seq2seq"].loss(architecture.apply(params, batch), batch, 0.1)
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(folder / "t5").eval()
    losses, tokens = 0.0, 0
    for row, slots in enumerate(batch["index"]):
        for slot in np.flatnonzero(slots >= 0):
            ids, labels = (
                torch.tensor(batch[name][row][batch[f"{side}segment_ids"][row] == slot + 1][None])
                for name, side in (("input_ids", ""), ("labels", "decoder_"))
            )
            logits = theirs(input_ids=ids, labels=labels.long()).logits[0]
            losses += torch.nn.functional.cross_entropy(
                logits, labels[0].long(), label_smoothing=0.1, reduction="sum"
            ).item()
            tokens += labels.numel()
    assert float(weight) == tokens
    assert float(total) == pytest.approx(losses, rel=1e-5)


@pytest.mark.slow
def test_stacked_weights_write_the_same_texts(world, tmp_path):
    folder, _ = world
    tiny.t5(tmp_path / "deep", blocks=4, width=16)
    fields = {
        "model.path": str(tmp_path / "deep"), "train.steps": 4, "eval.beams": 1,
    }  # fmt: skip
    for average, stack in ((a, s) for a in ("none", "ema") for s in ("on", "off")):
        own = {**fields, "model.stack": stack, "optim.average": average}
        train(config_of(folder, **own), tmp_path / f"{average}-{stack}")
    for average in ("none", "ema"):
        found, expected = (
            (tmp_path / f"{average}-{stack}" / "predictions" / "test.jsonl").read_bytes()
            for stack in ("on", "off")
        )
        assert found == expected and b"predicted" in found


def test_scores_of_texts():
    wanted = ["the film was great", "a day", ""]
    assert written.scores(wanted, wanted)["exact_match"] == 1.0
    found = written.scores(["the film was poor", " a day ", "so"], wanted)
    assert found["rouge1"] == pytest.approx((0.75 + 1 + 0) / 3)
    assert found["exact_match"] == pytest.approx(1 / 3) and 0 < found["chrf"] < 100
    empty = written.scores(["", "", ""], wanted)
    assert written.warnings_of(empty) == [
        "all 3 generated texts are empty: the model ends them at once"
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"eval.generate": 0}, "eval.metric='rougeL' is of generated texts"),
        ({"eval.beams": 1, "eval.length_penalty": 2.0}, "eval.length_penalty=2.0 is of beams"),
        ({"data.classes": ("a",)}, "data.classes=.* has no meaning for config.task='seq2seq'"),
        ({"data.label": "targets"}, "no column 'targets'.*did you mean 'target'"),
        ({"data.text": ("source", "target")}, "one text is read, got 2"),
    ],
)
def test_mistakes_are_one_line(world, changed, message):
    folder, _ = world
    with pytest.raises(ValueError, match=message):
        config = config_of(folder, **changed)
        validate(config)
        prepare(config)


def test_fields_of_other_tasks_have_no_meaning(world):
    folder, _ = world
    for field, value in (("data.prefix", "so: "), ("eval.beams", 3)):
        config = override(
            default_config(),
            {"model.path": str(folder / "t5"), "data.train": "x.csv", field: value},
        )
        with pytest.raises(ValueError, match=f"{field}=.* has no meaning"):
            prepare(config)


def test_every_block_of_a_stream_has_the_rows_of_the_first(world, tmp_path):
    """Otherwise answers that are longer there would be of other shapes, each with a program of its own."""
    folder, _ = world
    pairs = [(" ".join(WORDS[:6]), word) for word in WORDS[:8] * 4]
    rows = [{"source": x, "target": y} for x, y in [*pairs, *((y, x) for x, y in pairs)]]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = config_of(folder, **{"data.stream": 32, "data.eval": str(folder / "test.csv")})
    config.data.train = str(tmp_path / "train.jsonl")
    prepared = prepare(config)
    splits, limits = prepared.splits, prepared.architecture.limits
    encoder = make_encoder(config, prepared.task.inputs, prepared.directory, limits, splits, None)
    batches = stream_batches(encoder, splits.train, splits.blocks, config, 2, Slicing())
    answers = batches.first.tokens.answers
    for batch in (batches[0], batches[1]):
        length = answers.row_length(batch["input_ids"].shape[1])
        assert batch["decoder_input_ids"].shape[1] == length
