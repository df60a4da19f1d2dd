"""Heads that predict tokens: packed rows, tied tables, and checkpoints that have them otherwise."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxft import models
from jaxft.models import hf, vocabulary
from tests.models.native_rows import ROWS
from tests.models.test_native import compiled, load, packed, torch_model, write


def saved(name, directory):
    row = ROWS[name]
    model = torch_model(row)
    model.save_pretrained(directory)
    return model, row


def read(directory, head):
    architecture = models.load_architecture(str(directory), num_labels=0, head=head)
    return architecture, *hf.read_params(str(directory), architecture, key=jax.random.key(0))


@pytest.mark.parametrize("name", ["gpt2, next token", "bert, masked"])
def test_tokens_of_packed_rows_have_the_logits_of_rows_of_their_own(name, tmp_path):
    _, row = saved(name, tmp_path)
    architecture, params = load(tmp_path, row)
    ours, _ = row.inputs(np.random.default_rng(0))
    run = compiled(lambda params, batch: vocabulary.logits(architecture.apply(params, batch)))
    alone, together = np.asarray(run(params, ours)), np.asarray(run(params, packed(ours)))
    assert alone.shape == (3, 9, 50)  # as many as a row has tokens: every token is read
    lengths = (ours["segment_ids"] > 0).sum(1)
    for example, row_of, start in ((0, 0, 0), (2, 0, lengths[0]), (1, 1, 0)):
        length = lengths[example]
        np.testing.assert_allclose(
            together[row_of, start : start + length], alone[example, :length], atol=1e-5
        )


@pytest.mark.parametrize(
    "name, table, again",
    [
        ("gpt2, next token", "transformer.wte.weight", "lm_head.weight"),
        (
            "bert, masked",
            "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.weight",
        ),
    ],
)
def test_a_tied_table_is_one_parameter_under_any_of_its_names(name, table, again, tmp_path):
    _, row = saved(name, tmp_path)
    file = tmp_path / "model.safetensors"
    found = load_file(file)
    architecture, params, report = read(tmp_path, row.head)
    leaves = models.by_path(params)
    assert len(leaves) == len(found) and not report.dropped and not report.initialised
    for tensors in (
        {**found, again: found[table]},  # as files that torch.save wrote
        {again if name == table else name: x for name, x in found.items()},
    ):
        save_file(tensors, file)
        _, others, report = read(tmp_path, row.head)
        assert not report.dropped and not report.initialised
        for path, leaf in models.by_path(others).items():
            np.testing.assert_array_equal(leaf, leaves[path])
    save_file({**found, again: found[table] + 1}, file)
    with pytest.raises(ValueError, match=again.replace(".", r"\.")):
        read(tmp_path, row.head)


def test_an_untied_table_that_a_file_lacks_is_initialised(tmp_path):
    saved("llama", tmp_path)  # with a head for sequences
    architecture, params, report = read(tmp_path, "causal")
    assert architecture.exports == "LlamaForCausalLM"
    assert report.initialised == ("lm_head/embedding",) and report.dropped == ("score.weight",)
    assert 0.1 < float(np.std(params["lm_head"]["embedding"])) < 0.3


def test_an_export_has_no_labels_and_transformers_misses_nothing(tmp_path):
    model, row = saved("bert, masked", tmp_path / "in")
    path = tmp_path / "in" / "config.json"
    config = json.loads(path.read_text())
    labels = {"id2label": {"0": "a"}, "label2id": {"a": 0}}
    path.write_text(json.dumps({**config, **labels}))
    architecture, params = load(tmp_path / "in", row)
    write(architecture, params, tmp_path / "out", source=str(tmp_path / "in"), unchanged=())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM"] and config["tie_word_embeddings"] is True
    assert not {"id2label", "label2id"} & config.keys()
    again, said = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(said.values())
    decoder = again.cls.predictions.decoder
    assert decoder.weight.data_ptr() == again.bert.embeddings.word_embeddings.weight.data_ptr()
    assert decoder.bias.data_ptr() == again.cls.predictions.bias.data_ptr()
