"""Preference tuning from pairs of answers to the exported checkpoint."""

import json
import random
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxft import evaluate, export, load, predict, train
from jaxft.config import default_config, override
from jaxft.data.chat import NoConversation
from jaxft.data.files import table
from jaxft.data.preferences import find_preference_columns, pair_of, read_preferences
from jaxft.experiment.build import read_params, with_references
from jaxft.experiment.encoder import Slicing, make_encoder
from jaxft.experiment.prepared import prepare
from jaxft.experiment.references import References
from jaxft.experiment.steps import devices
from jaxft.models import hf
from jaxft.training.gradient import MeanGradient
from jaxft.training.logs import Logs
from tests import tiny
from tests.tasks.test_instruction import checkpoint
from tests.worlds import Crash

ROOT = Path(__file__).parents[2]
USER = {"role": "user", "content": "hi"}


def says(text):
    return {"role": "assistant", "content": text}


def write(path, rows=40, *, seed=0):
    rng = random.Random(seed)
    with path.open("w") as file:
        for number in range(rows):
            good, bad = (
                rng.choices(tiny.WORDS[mood], k=rng.randint(1, 3)) for mood in ("good", "bad")
            )
            # Some pairs are longer together than the model has positions.
            prompt = f"day {number}" + " very" * (35 if number % 9 == 4 else 0)
            row = {"prompt": prompt, "chosen": " ".join(good), "rejected": " ".join(bad)}
            file.write(json.dumps(row) + "\n")
    return str(path)


def fields(folder, **more):
    return {
        "task": "preference", "eval.metric": "loss", "model.path": str(folder / "gpt2"),
        "data": {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")},
        "data.max_length": 64, "data.max_shapes": 1, "data.cache": str(folder / "cache"),
        "train": {"compile_cache": "", "batch_size": 8, "steps": 8, "log_every": 1, "beta": 0.5},
        "optim.lr": 3e-3, "optim.warmup": "0 steps", "eval.every": "50%", "parallel.mode": "jit",
        "log.tensorboard": False, "optim.frozen": ("transformer/wpe/.*",),
        "checkpoint.every_steps": 2, **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A finished run, its data, and how often what the first model says was computed."""
    folder = tmp_path_factory.mktemp("preference")
    checkpoint(folder / "gpt2")
    write(folder / "train.jsonl")
    write(folder / "test.jsonl", 12, seed=5)
    with counting() as made:
        result = train(ROOT / "configs/preference.py", folder / "run", fields(folder))
    assert len(made) == 3  # for each split
    return folder, result


class counting:
    """What `References` computed within the block."""

    def __enter__(self):
        self.patch, made, original = pytest.MonkeyPatch(), [], References._made

        def counted(self, split, batches):
            made.append(len(split.targets))
            return original(self, split, batches)

        self.patch.setattr(References, "_made", counted)
        return made

    def __exit__(self, *_):
        self.patch.undo()


# The loss


def batch_of(folder, **more):
    """(prepared, parameters that have moved a little, a batch with what they said before)."""
    config = override(default_config(), fields(folder, **more))
    prepared, parallel = prepare(config), devices(config)
    params, report = read_params(prepared, parallel)
    prepared = with_references(prepared, parallel, params, report, cache=str(folder / "cache"))
    encoder = make_encoder(
        config,
        "preference",
        prepared.directory,
        prepared.architecture.limits,
        prepared.splits,
        None,
    )
    batches = encoder.training(prepared.splits.train, config, 4, Slicing(accumulate=2))
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda x: x + 0.02 * rng.normal(size=x.shape).astype(np.float32), params)
    return prepared, moved, batches[0]


def gradient_of(prepared, params, batch, parts=1, label_smoothing=0.0):
    def loss_sum(params, part, key):
        outputs = prepared.architecture.apply(params, part)
        total, weight = prepared.task.loss(outputs, part, label_smoothing)
        return total, (weight, {})

    run = jax.jit(lambda p, b: MeanGradient(parts)(loss_sum, p, b, jax.random.key(0)))
    return run(params, batch)


def plain_loss(model, first, batch, form, beta, smoothing):
    """The paper's, each answer alone: mean over the pairs of a batch."""

    def says(model, row, text):
        own = batch["segment_ids"][row] == text
        ids = torch.tensor(batch["input_ids"][row, own].astype(np.int64))
        counts = torch.tensor(batch["counted"][row, own][1:] > 0)
        scores = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        own = scores[torch.arange(len(ids) - 1), ids[1:]][counts]
        return own.sum() if form == "dpo" else own.mean()

    losses = []
    for row, slot in zip(*np.nonzero(batch["index"] >= 0), strict=True):
        gains = []
        for text in (2 * slot + 1, 2 * slot + 2):
            with torch.no_grad():
                before = says(first, row, text)
            gains.append(says(model, row, text) - before)
        margin = gains[0] - gains[1]
        if form == "ipo":
            losses.append((margin - 1 / (2 * beta)) ** 2)
        else:
            sigmoid = torch.nn.functional.logsigmoid
            losses.append(
                -(1 - smoothing) * sigmoid(beta * margin) - smoothing * sigmoid(-beta * margin)
            )
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    ("form", "smoothing"),
    [
        ("dpo", 0.1),
        pytest.param("dpo_norm", 0.0, marks=pytest.mark.slow),
        pytest.param("ipo", 0.0, marks=pytest.mark.slow),
    ],
)
def test_loss_and_gradient_are_those_of_a_plain_implementation(world, tmp_path, form, smoothing):
    folder, _ = world
    prepared, params, batch = batch_of(folder, **{"train.preference_loss": form})
    found = gradient_of(prepared, params, batch, label_smoothing=smoothing)
    hf.write_checkpoint(
        str(tmp_path / "moved"),
        prepared.architecture,
        params,
        id2label={},
        source=None,
        unchanged=(),
    )
    model, first = (
        transformers.AutoModelForCausalLM.from_pretrained(path)
        for path in (tmp_path / "moved", folder / "gpt2")
    )
    loss = plain_loss(model, first, batch, form, 0.5, smoothing)
    loss.backward()
    assert float(found.loss) == pytest.approx(float(loss.detach()), rel=2e-5)
    assert float(found.weight) == (batch["index"] >= 0).sum()
    theirs = {name.replace(".", "/"): p.grad.numpy() for name, p in model.named_parameters()}
    for path, name in (("wte/embedding", "wte/weight"), ("h/0/attn/c_attn/kernel", "h/0/attn/c_attn/weight"),
                       ("ln_f/scale", "ln_f/weight")):  # fmt: skip
        ours = found.grads["transformer"]
        for key in path.split("/"):
            ours = ours[key if key in ours else int(key)]
        expected = theirs[f"transformer/{name}"]
        np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


def test_packing_and_accumulation_change_nothing(world):
    folder, _ = world
    prepared, params, packed = batch_of(folder)
    _, _, alone = batch_of(folder, **{"data.pack": False})
    assert packed["index"].shape[1] > 1 == alone["index"].shape[1]
    expected = gradient_of(prepared, params, packed)
    for batch, parts in ((alone, 1), (alone, 2)):
        found = gradient_of(prepared, params, batch, parts)
        assert float(found.loss) == pytest.approx(float(expected.loss), rel=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
            found.grads,
            expected.grads,
        )


# A run


def test_a_run_begins_at_no_difference_and_learns_the_order(world):
    folder, result = world
    rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert losses[0] == pytest.approx(
        np.log(2), rel=1e-6
    )  # the first step's weights are the reference
    assert losses[-1] < losses[0] and result.test["margin"] > 0 and result.test["accuracy"] > 0.5
    assert result.test["chosen_reward"] - result.test["rejected_reward"] == pytest.approx(
        result.test["margin"]
    )
    again = evaluate(folder / "run", folder / "test.jsonl")
    assert again["margin"] == pytest.approx(result.test["margin"], rel=1e-4)
    page = result.report.read_text()
    assert "pairs in order" in page and "preferred: " in page and "unexpected" not in page


def test_what_the_first_model_says_is_kept_by_weights_and_tokens(world, tmp_path):
    folder, result = world
    with counting() as made:
        batch_of(folder)
        assert not made
        batch_of(folder, **{"data.text": ("prompt", "rejected", "chosen")})
        assert len(made) == 3
        batch_of(folder, **{"model.path": str(result.best)})
        assert len(made) == 6
        for path in (folder / "cache").glob("*.reference.npy"):
            path.write_bytes(path.read_bytes()[:-4])
        batch_of(folder)
        assert len(made) == 9


@pytest.mark.slow
def test_a_run_that_was_killed_ends_with_the_same_bits(world, tmp_path):
    folder, result = world
    original = Logs.train

    def crash(self, at, *rest):
        original(self, at, *rest)
        if at == 5:
            raise Crash

    config = ROOT / "configs/preference.py"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Logs, "train", crash)
        train(config, tmp_path / "run", fields(folder))
    again = train(config, tmp_path / "run", fields(folder))
    ours, theirs = ((one.best / "model.safetensors").read_bytes() for one in (again, result))
    assert ours == theirs


def test_export_and_predictions(world, tmp_path):
    folder, result = world
    command = ["export", f"--run={folder}/run", f"--output={tmp_path}/out", "--verify=6"]
    assert export.main(command) == 0
    certificate = json.loads((tmp_path / "out/certificate.json").read_text())
    assert certificate["pytorch"]["largest difference"] < 1e-4
    assert all(entry["identical"] for entry in certificate["untouched tensors"].values())
    assert (result.best / "chat_template.jinja").exists()
    output = tmp_path / "out.jsonl"
    command = [
        "predict",
        f"--run={folder}/run",
        f"--input={folder}/test.jsonl",
        f"--output={output}",
    ]
    assert predict.main(command) == 0 and predict.main(command) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 12 and list(rows[0])[-2:] == [
        "log_probability_chosen",
        "log_probability_rejected",
    ]
    given = [tuple(row[name] for name in ("prompt", "chosen", "rejected")) for row in rows]
    answers = load(folder / "run").predict(given)
    assert [a.chosen for a in answers] == pytest.approx(
        [row["log_probability_chosen"] for row in rows], abs=1e-4
    )


# Rows


@pytest.mark.parametrize(
    ("values", "shared"),
    [
        (("hi", "a", "b"), 1),
        (([USER], [says("a")], [says("b")]), 1),
        (("hi", [USER, says("a")], [USER, says("b")]), 1),
        (([USER, says("a")], [USER, says("b")]), 1),
        (([USER, says("x"), USER, says("a")], [USER, says("x"), USER, says("b")]), 3),
        (("hi", "a", "a"), 1),
    ],
)
def test_every_shape_is_two_conversations(values, shared):
    first, second, found = pair_of(values)
    assert found == shared and first[:shared] == second[:shared]
    assert first[shared]["content"] == "a" and second[shared]["content"] in ("a", "b")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("a", "b"), "no prompt: its preferred answer"),
        (("hi", "a", ""), "an empty answer"),
        (("hi", None, "b"), "no text as the answer .None"),
        (([USER, says("a")], [{**USER, "content": "ho"}, says("b")]), "do not begin alike"),
        (([USER, says("a")], [USER, says("a"), USER]), "the beginning of the other one"),
        (([USER, says("a")], [USER, {**USER, "content": "b"}]), "does not end with the assistant"),
    ],
)
def test_what_is_no_pair_is_one_line(values, message):
    with pytest.raises(NoConversation, match=message):
        pair_of(values)
    columns = ("prompt", "chosen", "rejected")[-len(values) :]
    good = ("hi", "a", "b") if len(values) == 3 else ([USER, says("a")], [USER, says("b")])
    source = table("t.jsonl", {n: [v, g] for n, v, g in zip(columns, values, good, strict=True)})
    with pytest.raises(ValueError, match=f"t.jsonl, .* 1: the row .*{message}.*advice") as error:
        read_preferences(source, columns, advice=" by advice")
    assert "\n" not in str(error.value)
    assert read_preferences(source, columns, drop_bad=True).rows.tolist() == [1]


def test_columns_are_found_and_what_goes_together_is_checked(world, tmp_path):
    folder, _ = world
    source = table("t", {"chosen": ["a"], "rejected": ["b"], "prompt": ["c"]})
    assert find_preference_columns(source) == ("prompt", "chosen", "rejected")
    for change, message in (
        ({"data.text": ("prompt",)}, "three columns, .*got 1: prompt"),
        ({"data.label": "prompt"}, "data.label='prompt' has no meaning"),
        (
            {"train.preference_loss": "ipo", "train.label_smoothing": 0.1},
            "needs .*label_smoothing",
        ),
        ({"data.max_length": 6}, "every answer is cut off at 6 tokens"),
        ({"data.train": str(folder / "chat.jsonl")}, "chat.jsonl has no columns of preferences"),
    ):
        (folder / "chat.jsonl").write_text('{"messages": []}\n')
        with pytest.raises(ValueError, match=message):
            train(ROOT / "configs/preference.py", tmp_path / "run", fields(folder, **change))
