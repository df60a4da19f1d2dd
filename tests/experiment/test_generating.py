"""`load(…).generate` against transformers, from text to text."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import transformers

import jaxft
from jaxft import predict
from jaxft.data import files
from jaxft.data.chat_template import load_template
from jaxft.data.tokenizer import load_tokenizer
from jaxft.experiment import generating, inference
from jaxft.experiment.split import Split
from tests import tiny

PROMPTS = ["the film was", "it is a very lovely day and so", "a"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.language_model(tmp_path_factory.mktemp("generating") / "model", "causal", blocks=2)


def torch_text(directory, prompt, count):
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    given = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    said = model.generate(**given, do_sample=False, max_new_tokens=count, pad_token_id=0)[0]
    before, whole = (
        tokenizer.decode(ids, skip_special_tokens=True) for ids in (given["input_ids"][0], said)
    )
    return whole.removeprefix(before)


def test_texts_are_those_of_transformers(checkpoint):
    torch.set_num_threads(1)
    found = jaxft.load(checkpoint).generate(PROMPTS, max_new_tokens=9)
    assert found == [torch_text(checkpoint, prompt, 9) for prompt in PROMPTS]
    assert len(set(found)) == 3 and len(found[0].split()) > 3


def test_texts_end_before_stop_strings_and_ending_tokens(checkpoint):
    model = jaxft.load(checkpoint)
    whole = model.generate(PROMPTS, max_new_tokens=9)
    word = whole[0].split()[3]
    for found, text in zip(
        model.generate(PROMPTS, max_new_tokens=9, stop=[word]), whole, strict=True
    ):
        assert found == text.partition(word)[0]
    folder = Path(checkpoint)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    generation = folder / "generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": [vocabulary[word]]}))
    ended = jaxft.load(checkpoint).generate(PROMPTS[:1], max_new_tokens=9)
    generation.unlink()
    assert ended[0] == whole[0].partition(word)[0].rstrip()


def test_a_seed_gives_the_same_texts_again(checkpoint):
    model = jaxft.load(checkpoint)
    settings = {"max_new_tokens": 6, "temperature": 1.5, "top_p": 0.95}
    first, again, other = (model.generate(PROMPTS, seed=seed, **settings) for seed in (1, 1, 2))
    assert first == again != other


def test_predict_goes_on_with_each_row(checkpoint, tmp_path, capsys):
    rows = [{"text": prompt, "id": number} for number, prompt in enumerate(PROMPTS)]
    given, said = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["predict", "--run", checkpoint, "--input", str(given), "--output", str(said)]
    assert predict.main([*command, "--max_new_tokens", "9"]) == 0
    found = [json.loads(line) for line in said.read_text().splitlines()]
    texts = jaxft.load(checkpoint).generate(PROMPTS, max_new_tokens=9)
    assert found == [{**row, "predicted_text": text} for row, text in zip(rows, texts, strict=True)]
    for flags, message in (
        (["--top_k", "3"], "--top_k is for texts that are generated: give --max_new_tokens, too"),
        (["--max_new_tokens", "9", "--top_p", "x"], "--top_p must be a number, got 'x'"),
        (["--max_new_tokens", "62"], "prompt 1 has 3 tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            predict.main([*command, *flags])


def test_of_a_conversation_the_assistant_goes_on(checkpoint):
    """With what the template writes before an answer, whether or not the row has one."""
    model = inference.load_inference(checkpoint)
    chat = dataclasses.replace(model.encoder, inputs="conversation", columns=("messages",))
    going = generating.continuing(dataclasses.replace(model, encoder=chat), max_new_tokens=5)
    asked = [{"role": "user", "content": "the film was"}]
    answered = [*asked, {"role": "assistant", "content": "a very warm day"}]
    source = files.table("rows", {"messages": [asked, answered]})
    split = Split(source, going.encoder.kind.unlabelled(source, ("messages",)))
    written = going.predict(split)["written"].tolist()
    template = load_template(checkpoint, load_tokenizer(checkpoint))
    expected = jaxft.load(checkpoint).generate([template.prompt(asked)], max_new_tokens=5)
    assert written == expected * 2 and written[0].split()


def test_mistakes_are_one_line(checkpoint):
    model = jaxft.load(checkpoint)
    for given, options, message in (
        ("the film", {}, "give a list of inputs, not one str"),
        ([3], {}, "prompt 1 is no text: 3"),
        (PROMPTS, {"max_new_tokens": 62}, "prompt 1 has 3 tokens; .* 64 positions"),
        (PROMPTS, {"temperature": -1}, "temperature is -1; it must be at least 0"),
        ([""], {}, "prompt 1 has no token"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(given, **options)
    assert model.generate([]) == []
