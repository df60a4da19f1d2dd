"""Instruction tuning from conversations to the exported checkpoint."""

import json
import random
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxft import evaluate, train
from tests import tiny

ROOT = Path(__file__).parents[2]


def checkpoint(folder):
    """A GPT-2 with a byte-level tokenizer and no chat template, as base models have none."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator([" ".join(["User: Assistant:", *tiny.FILLER])] * 3, trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>").save_pretrained(
        folder
    )
    config = transformers.GPT2Config(
        vocab_size=300, n_positions=128, n_embd=24, n_layer=1, n_head=2, initializer_range=0.2,
        eos_token_id=0, bos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    model.generation_config.temperature, model.generation_config.do_sample = 0.7, True
    model.save_pretrained(folder)
    return str(folder)


def write(path, rows=40, *, seed=0, spoil=None):
    rng = random.Random(seed)
    with path.open("w") as file:
        for number in range(rows):
            turns = []
            for _ in range(rng.randint(1, 2)):
                mood = rng.choice(list(tiny.WORDS))
                turns += [
                    {"role": "user", "content": f"the film was {rng.choice(tiny.WORDS[mood])}"},
                    {"role": "assistant", "content": f"so it is {mood}"},
                ]
            row = {"id": number, "messages": turns}
            file.write(json.dumps(spoil(row) if spoil and number == 3 else row) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A finished run, and its data."""
    folder = tmp_path_factory.mktemp("instruction")
    given = {
        "model.path": checkpoint(folder / "gpt2"),
        "data": {"train": write(folder / "train.jsonl"), "test": write(folder / "test.jsonl", 12, seed=5)},
        "data.max_length": 64, "data.max_shapes": 1, "train.compile_cache": "", "train.batch_size": 8,
        "train.steps": 30, "optim.lr": 1e-2, "eval.every": "50%", "parallel.mode": "jit",
        "log.tensorboard": False, "optim.frozen": ("transformer/wpe/.*",),
    }  # fmt: skip
    return folder, given, train(ROOT / "configs/instruction.py", folder / "run", given)


def torch_losses(directory, path, max_length=64):
    """(sum of losses, tokens) of the completions, each conversation alone, as transformers has them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    total = count = 0
    for line in path.read_text().splitlines():
        given = tokenizer.apply_chat_template(
            json.loads(line)["messages"], return_assistant_tokens_mask=True, return_dict=True
        )
        ids = torch.tensor(given["input_ids"])[None, :max_length]
        own = torch.tensor(given["assistant_masks"])[None, :max_length] > 0
        if tokens := int(own.sum()):
            with torch.no_grad():
                loss = model(input_ids=ids, labels=torch.where(own, ids, -100)).loss
            total, count = total + float(loss) * tokens, count + tokens
    return total, count


def test_the_exported_model_and_template_give_transformers_the_same_loss(world):
    folder, _, result = world
    total, count = torch_losses(result.best, folder / "test.jsonl")
    assert result.test["tokens"] == count and result.test["examples"] == 12
    assert result.test["loss"] == pytest.approx(total / count, rel=1e-5)
    assert evaluate(folder / "run", folder / "test.jsonl")["loss"] == pytest.approx(
        total / count, rel=1e-5
    )
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line.get("split") == "eval"]
    assert losses[-1] < losses[0]


def test_the_export_keeps_what_generation_reads(world):
    folder, given, result = world
    for name in ("generation_config.json", "tokenizer.json"):
        assert (result.best / name).read_bytes() == (folder / "gpt2" / name).read_bytes()
    # The template that it was trained with, since the checkpoint had none of its own.
    assert "Assistant:" in (result.best / "chat_template.jinja").read_text()
    assert "pipeline_tag: text-generation" in (result.best / "README.md").read_text()
    page = result.report.read_text()
    assert "user: the film was" in page and "unexpected" not in page


def test_it_is_said_what_was_decided_and_what_is_cut(world, tmp_path, capsys):
    _, given, _ = world
    change = {"data.max_length": 40, "train.steps": 1, "data.test": ""}
    train(ROOT / "configs/instruction.py", tmp_path / "run", {**given, **change})
    said = capsys.readouterr().out
    assert "no chat template: a plain one is used" in said
    assert "completions beyond 40 tokens of their text are not read" in said


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda row: {"messages": [{"content": "hi"}]}, "line 4: .* message 1 without a role"),
        (
            lambda row: {"messages": [*row["messages"], {"role": "bott", "content": "x"}]},
            "role 'bott'",
        ),
        (
            lambda row: {"messages": row["messages"][:1]},
            "no message of the assistant.*on_bad_row='skip'",
        ),
    ],
)
def test_a_row_that_is_no_conversation_is_one_line(world, tmp_path, spoil, message):
    _, given, _ = world
    data = write(tmp_path / "bad.jsonl", spoil=spoil)
    with pytest.raises(ValueError, match=message) as error:
        train(ROOT / "configs/instruction.py", tmp_path / "run", {**given, "data.train": data})
    assert "\n" not in str(error.value)


def test_other_mistakes_are_one_line(world, tmp_path):
    _, given, _ = world
    for change, message in (
        ({"data.max_length": 8}, "every completion lies beyond the first 8 tokens"),
        ({"data.label": "id"}, "data.label='id' has no meaning"),
        ({"data.text": ("message",)}, "no column 'message'.*did you mean 'messages'"),
    ):
        with pytest.raises(ValueError, match=message):
            train(ROOT / "configs/instruction.py", tmp_path / "run", {**given, **change})
