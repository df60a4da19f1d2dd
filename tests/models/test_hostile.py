"""Checkpoints that are wrong on purpose: each is one line that names the file, never a hang.

A case changes one thing about a checkpoint that is right, which is then read as a run reads it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxft import models
from jaxft.base import json_file
from jaxft.models import hf
from jaxft.models.checkpoint import tensors
from tests.models.test_parity import FAMILY_ROWS, every_family

CONFIG, WEIGHTS, INDEX = "config.json", tensors.SINGLE, tensors.INDEX
DEEP = 10**5


SIZES = {
    "bert": {"vocab_size": 31, "max_position_embeddings": 64},
    "vit": {"image_size": 8, "patch_size": 4, "num_channels": 1},
}


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One right checkpoint a family, of zeros: as the cases below name its sizes, or its parity row's."""
    found = {}
    for family in [*SIZES, *(name for name in FAMILY_ROWS if name not in SIZES)]:
        found[family] = place = tmp_path_factory.mktemp(family)
        if family in SIZES:
            common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
            raw = {"model_type": family, **common, "intermediate_size": 64, **SIZES[family]}
            (place / CONFIG).write_text(json.dumps(raw))
        else:
            FAMILY_ROWS[family].config.save_pretrained(place)
        (place / "tokenizer.json").write_text("{}")  # for others to refuse
        architecture = models.load_architecture(str(place), num_labels=2)
        zeros = {}
        for path, leaf in models.by_path(architecture.whole).items():
            stored = architecture.stored[path]
            # transformers counts batches in int64.
            kind = np.float32 if leaf.dtype == np.float32 else np.int64
            zeros[stored.name] = np.zeros(stored.reordered(leaf.shape), kind)
        save_file(zeros, place / WEIGHTS)
    return found


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """A case that waits for ever fails instead; none takes a second."""

    def late(*_: Any) -> None:
        raise AssertionError("it hangs")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(120)
    yield
    signal.alarm(0)


def read(directory: Path) -> None:
    """All that a run does with a checkpoint before its first step."""
    name = str(directory)
    architecture = models.load_architecture(name, num_labels=2)
    hf.missing(name, architecture)
    hf.read_params(name, architecture, key=jax.random.key(0))
    hf.fingerprints(name)


def refused(directory: Path, file: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        read(directory)
    text = str(error.value)
    assert message in text
    assert text.startswith(f"{directory}/{file}") or text.startswith(f"{directory} "), text
    assert "\n" not in text and len(text) < 1500
    assert type(error.value) is ValueError  # not a subclass that a library threw


@every_family
def test_what_is_right_is_read(family, right):
    read(right[family])


@every_family
@pytest.mark.parametrize("damage", ["cut", "missing", "unexpected", "misshapen", "whole numbers"])
def test_damaged_tensors_of_every_family(family, damage, right, tmp_path):
    directory = shutil.copytree(right[family], tmp_path / "model")
    if damage == "cut":
        data = (directory / WEIGHTS).read_bytes()
        (directory / WEIGHTS).write_bytes(data[:-1])
        return refused(directory, WEIGHTS, "is no complete safetensors file")
    found = load_file(directory / WEIGHTS)
    # Of the body: a head of another shape is replaced. Not square: then its transpose would fit.
    name = next(n for n, x in found.items() if x.ndim > 1 and len(set(x.shape[:2])) > 1 and "." in n
                and not n.startswith(("classifier", "score")))  # fmt: skip
    if damage == "missing":
        del found[name]
    elif damage == "unexpected":
        found[f"{name}.x"] = found[name]
    elif damage == "misshapen":
        found[name] = np.ascontiguousarray(found[name].swapaxes(0, 1))
    else:
        found[name] = found[name].astype("int8")
    save_file(found, directory / WEIGHTS)
    said = f"1 {damage}: {name}"
    refused(directory, WEIGHTS, f"1 misshapen: {name} is I8" if damage == "whole numbers" else said)


# What a field of config.json is replaced by -> what is said.
FIELDS: list[tuple[str, str, Any, str]] = [
    ("bert", "hidden_size", "32", "hidden_size '32' must be a whole number from 1 to 131,072"),
    ("bert", "hidden_size", -32, "hidden_size -32 must be"),
    ("bert", "hidden_size", 0, "hidden_size 0 must be"),
    ("bert", "hidden_size", 32.0, "hidden_size 32.0 must be"),
    ("bert", "hidden_size", True, "hidden_size True must be"),
    ("bert", "hidden_size", None, "hidden_size None must be"),
    ("bert", "hidden_size", [32], "hidden_size [32] must be"),
    ("bert", "hidden_size", {"a": 1}, "hidden_size {'a': 1} must be"),
    ("bert", "hidden_size", 10**12, "hidden_size 1000000000000 must be"),
    ("bert", "hidden_size", 10**400, "hidden_size 1000"),
    ("bert", "hidden_size", 33, "hidden_size 33 is not a multiple of num_attention_heads 2"),
    ("bert", "num_attention_heads", 0, "num_attention_heads 0 must be"),
    ("bert", "num_attention_heads", -2, "num_attention_heads -2 must be"),
    ("bert", "num_attention_heads", 2.5, "num_attention_heads 2.5 must be"),
    ("bert", "num_hidden_layers", 10**9, "num_hidden_layers 1000000000 must be a whole number"),
    ("bert", "num_hidden_layers", -1, "num_hidden_layers -1 must be"),
    ("bert", "num_hidden_layers", 3, "is no BertForSequenceClassification: 16 missing"),
    ("bert", "num_hidden_layers", 1, "16 unexpected: bert.encoder.layer.1."),
    ("bert", "vocab_size", 2**31, "vocab_size 2147483648 must be"),
    ("bert", "vocab_size", "many", "vocab_size 'many' must be"),
    (
        "bert",
        "vocab_size",
        7,
        "bert.embeddings.word_embeddings.weight is [31, 32], expected [7, 32]",
    ),
    ("bert", "intermediate_size", [[64]], "intermediate_size [[64]] must be"),
    ("bert", "max_position_embeddings", -64, "max_position_embeddings -64 must be"),
    ("bert", "type_vocab_size", 0, "type_vocab_size 0 must be"),
    ("bert", "hidden_act", "mish", "hidden_act 'mish' must be one of gelu"),
    ("bert", "hidden_act", ["gelu"], "hidden_act ['gelu'] must be one of gelu"),
    ("bert", "hidden_act", {}, "hidden_act {} must be one of gelu"),
    ("bert", "hidden_dropout_prob", 1, "hidden_dropout_prob 1 must be a number from 0 to less"),
    ("bert", "hidden_dropout_prob", -0.1, "hidden_dropout_prob -0.1 must be"),
    ("bert", "hidden_dropout_prob", float("nan"), "hidden_dropout_prob nan must be"),
    ("bert", "attention_probs_dropout_prob", "0.1", "attention_probs_dropout_prob '0.1' must be"),
    ("bert", "classifier_dropout", 7, "classifier_dropout 7 must be null or"),
    ("bert", "layer_norm_eps", float("inf"), "layer_norm_eps inf must be"),
    ("bert", "layer_norm_eps", -1e-5, "layer_norm_eps -1e-05 must be"),
    ("bert", "initializer_range", float("inf"), "initializer_range inf must be"),
    ("bert", "initializer_range", 10**400, "initializer_range 1000"),
    ("bert", "model_type", ["bert"], "model_type ['bert'] is not implemented; known are bert, "),
    ("bert", "model_type", None, "model_type None is not implemented"),
    ("bert", "model_type", {"bert": 1}, "model_type {'bert': 1} is not implemented"),
    ("bert", "model_type", "BERT", "did you mean 'bert'?"),
    ("bert", "model_type", "b\n" * 10**5, "is not implemented"),
    ("bert", "id2label", ["no", "yes"], "id2label must map class numbers to names"),
    ("bert", "id2label", "no", "id2label must map class numbers to names, found 'no'"),
    ("bert", "id2label", {"one": "no"}, "id2label must number the classes from 0 on"),
    ("bert", "id2label", {"1": "no", "2": "yes"}, "id2label must number the classes from 0 on"),
    ("bert", "id2label", {"-1": "no"}, "id2label must number the classes from 0 on"),
    ("bert", "id2label", {"0": "no", "4294967296": "x"}, "id2label must number the classes"),
    ("bert", "id2label", {"0": "no", "1": ["yes"]}, "names, found ['yes']"),
    ("bert", "id2label", {"0": "no", "1": None}, "names, found None"),
    ("bert", "id2label", {"0": "no", "1": "no"}, "id2label names two classes 'no'"),
    ("bert", "id2label", {"0": "\ud800"}, "half a surrogate pair"),
    ("bert", "a key\nof two lines", 1, r"'a key\nof two lines'=1 (unknown key)"),
    ("bert", "x" * 10**5, "y" * 10**5, "(unknown key)"),
    ("vit", "image_size", "8", "image_size '8' must be a whole number from 1 to 65,536, or two"),
    ("vit", "image_size", [8, 8, 8], "image_size [8, 8, 8] must be"),
    ("vit", "image_size", [8, -8], "image_size [8, -8] must be"),
    ("vit", "image_size", 8.5, "image_size 8.5 must be"),
    ("vit", "image_size", {"height": 8, "width": 8}, "image_size {'height': 8, 'width': 8} must"),
    ("vit", "image_size", 65536, "image_size (65536, 65536) has 268,435,456 patches; at most"),
    ("vit", "patch_size", 0, "patch_size 0 must be"),
    ("vit", "patch_size", [], "patch_size [] must be"),
    ("vit", "patch_size", 3, "image_size (8, 8) is no multiple of patch_size (3, 3)"),
    ("vit", "num_channels", -1, "num_channels -1 must be"),
    ("vit", "qkv_bias", "yes", "qkv_bias 'yes' must be true or false"),
    ("vit", "qkv_bias", 1, "qkv_bias 1 must be true or false"),
    ("roberta", "pad_token_id", -1, "pad_token_id -1 must be"),
    (
        "roberta",
        "pad_token_id",
        17,
        "max_position_embeddings 18 leaves no position after pad_token",
    ),
    ("roberta", "hidden_size", 30, "hidden_size 30 is not a multiple of num_attention_heads 4"),
    (
        "roberta",
        "position_embedding_type",
        "relative_key",
        "position_embedding_type='relative_key'",
    ),
    ("gpt2", "n_embd", 10**12, "n_embd 1000000000000 must be"),
    ("gpt2", "n_embd", 33, "n_embd 33 is not a multiple of n_head 4"),
    ("gpt2", "n_head", 0, "n_head 0 must be"),
    ("gpt2", "n_inner", -1, "n_inner -1 must be"),
    ("gpt2", "n_layer", 10**9, "n_layer 1000000000 must be"),
    ("gpt2", "activation_function", "gelo", "activation_function 'gelo' must be"),
    ("gpt2", "scale_attn_weights", False, "scale_attn_weights=False"),
    ("resnet", "depths", [], "depths [] must be a list, one a stage, each"),
    ("resnet", "depths", [1], "hidden_sizes has 2 stages, depths 1"),
    ("resnet", "depths", [1, 10**9], "depths [1, 1000000000] must be"),
    ("resnet", "depths", 2, "depths 2 must be"),
    ("resnet", "hidden_sizes", [32, 3], "hidden_sizes [32, 3] must be"),
    ("resnet", "hidden_sizes", [32, 10**12], "hidden_sizes [32, 1000000000000] must be"),
    ("resnet", "layer_type", "wide", "layer_type 'wide' must be basic or bottleneck"),
    ("resnet", "downsample_in_bottleneck", 1, "downsample_in_bottleneck 1 must be true or false"),
    ("resnet", "num_channels", 0, "num_channels 0 must be"),
]


@pytest.mark.parametrize("case", FIELDS, ids=lambda case: f"{case[1]}={case[2]!r}"[:60])
def test_a_field_that_cannot_be(case, right, tmp_path):
    family, field, value, message = case
    directory = shutil.copytree(right[family], tmp_path / "model")
    raw = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({**raw, field: value}))
    refused(directory, CONFIG, message)


# What stands in a file -> what is said.
TEXTS: list[tuple[str, str, bytes, str]] = [
    ("empty", CONFIG, b"", "cannot be read as JSON"),
    ("cut", CONFIG, b'{"model_type": "bert"', "cannot be read as JSON"),
    ("a list", CONFIG, b"[]", "must hold a JSON object, found list"),
    ("a number", CONFIG, b"7", "must hold a JSON object, found int"),
    ("null", CONFIG, b"null", "must hold a JSON object, found NoneType"),
    ("not UTF-8", CONFIG, b'{"model_type": "b\xe9rt"}', "is not UTF-8: byte 17 is 0xe9"),
    ("UTF-16", CONFIG, '{"model_type": "bert"}'.encode("utf-16"), "is not UTF-8: byte 0"),
    ("zeros", CONFIG, bytes(4096), "cannot be read as JSON"),
    ("deep lists", CONFIG, b'{"a": ' + b"[" * DEEP + b"]" * DEEP + b"}", "nested deeper than 50"),
    ("deep objects", CONFIG, b'{"a":' * DEEP + b"1" + b"}" * DEEP, "nested deeper than 50"),
    ("60 deep", CONFIG, b'{"a": ' + b"[" * 60 + b"]" * 60 + b"}", "nested deeper than 50 levels"),
    (
        "a key twice",
        CONFIG,
        b'{"model_type": "bert", "hidden_size": 32, "hidden_size": 64}',
        "the key 'hidden_size' stands twice",
    ),
    (
        "a label twice",
        CONFIG,
        b'{"model_type": "bert", "id2label": {"0": "a", "0": "b"}}',
        "the key '0' stands twice",
    ),
    ("1e400", CONFIG, b'{"model_type": "bert", "layer_norm_eps": 1e400}', "layer_norm_eps inf"),
    ("9,999 digits", CONFIG, b'{"hidden_size": ' + b"9" * 9999 + b"}", "cannot be read as JSON"),
    ("empty", WEIGHTS, b"", "is no complete safetensors file"),
    ("short", WEIGHTS, b"\x08\0\0\0", "is no complete safetensors file"),
    (
        "a header of 2**63 bytes",
        WEIGHTS,
        b"\xff" * 7 + b"\x7f{}",
        "is no complete safetensors file",
    ),
    ("a header that is no JSON", WEIGHTS, (8).to_bytes(8, "little") + b"notjson!", "no complete"),
    ("a header that is no UTF-8", WEIGHTS, (8).to_bytes(8, "little") + b"\xff" * 8, "no complete"),
    ("pickle", WEIGHTS, b"\x80\x02}q\0.", "is no complete safetensors file"),
]


def header(**entries: Any) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


def entry(dtype: Any = "F32", shape: Any = (16,), offsets: Any = (0, 64)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS: dict[str, tuple[bytes, str]] = {
    "a shape below zero": (header(a=entry(shape=[-16])), "is no complete safetensors file"),
    "a shape of 10**30": (header(a=entry(shape=[10**30])), "is no complete safetensors file"),
    "a shape beyond 2**64": (header(a=entry(shape=[2**40, 2**40])), "no complete safetensors"),
    "a shape of text": (header(a=entry(shape="16")), "is no complete safetensors file"),
    "offsets that overlap": (
        header(a=entry(), b=entry()),
        "is no complete safetensors file",
    ),
    "offsets beyond the file": (header(a=entry(offsets=[0, 640])), "no complete safetensors"),
    "offsets in reverse": (header(a=entry(offsets=[64, 0])), "is no complete safetensors file"),
    "an unknown type": (header(a=entry(dtype="F7")), "is no complete safetensors file"),
    "a list for a tensor": (header(a=[1, 2]), "is no complete safetensors file"),
    "a name of two lines": (header(**{"a\nb": entry()}), r"1 unexpected: 'a\nb'"),
    "no tensors": (header()[:10], "is no BertForSequenceClassification: 37 missing: "),
    "many names": (
        header(**{f"x{i}": entry(shape=[0], offsets=[0, 0]) for i in range(999)}, z=entry()),
        "1000 unexpected: x0, ",
    ),
}
TEXTS += [(name, WEIGHTS, data, message) for name, (data, message) in HEADERS.items()]


@pytest.mark.parametrize("case", TEXTS, ids=lambda case: f"{case[1]}: {case[0]}")
def test_a_file_that_cannot_be(case, right, tmp_path):
    _, file, data, message = case
    directory = shutil.copytree(right["bert"], tmp_path / "model")
    (directory / file).write_bytes(data)
    refused(directory, file, message)


# What an index holds -> what is said. The weights stand beside it, under another name.
INDICES: dict[str, tuple[Any, str]] = {
    "numbers": ({"weight_map": {"a": 1, "b": 2.5}}, "its weight_map names 1"),
    "lists": ({"weight_map": {"a": ["x.safetensors"]}}, "names ['x.safetensors']"),
    "null": ({"weight_map": {"a": None}}, "its weight_map names None"),
    "the directory above": ({"weight_map": {"a": "../x.safetensors"}}, "names '../x.safetensors'"),
    "an absolute path": ({"weight_map": {"a": "/x.safetensors"}}, "names '/x.safetensors'"),
    "itself": ({"weight_map": {"a": INDEX}}, f"names {INDEX!r}"),
    "a NUL": ({"weight_map": {"a": "x\0.safetensors"}}, r"names 'x\x00.safetensors'"),
    "no file": ({"weight_map": {"a": ""}}, "its weight_map names ''"),
    "absent files": ({"weight_map": {"a": "y.safetensors"}}, f"lacks y.safetensors, which {INDEX}"),
    "a list for a map": ({"weight_map": ["x.safetensors"]}, "it has no weight_map"),
    "an empty map": ({"weight_map": {}}, "it has no weight_map"),
    "no map": ({"metadata": {}}, "it has no weight_map"),
    "a list": ([], "it has no weight_map"),
    "nothing": (None, "it has no weight_map"),
    "depth": (json.loads("[" * 60 + "]" * 60), "nested deeper than 50 levels"),
}


@pytest.mark.parametrize("what", INDICES)
def test_an_index_that_cannot_be(what, right, tmp_path):
    value, message = INDICES[what]
    directory = shutil.copytree(right["bert"], tmp_path / "model")
    for place in (tmp_path, directory):  # what is not to be read is there, and right
        shutil.copy(right["bert"] / WEIGHTS, place / "x.safetensors")
    (directory / WEIGHTS).unlink()
    (directory / INDEX).write_text(json.dumps(value))
    refused(directory, INDEX, message)


def a_socket(path: Path) -> None:
    where = os.getcwd()
    os.chdir(path.parent)  # the path of a socket may have 107 bytes
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path.name)
    os.chdir(where)


KINDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pipe": (os.mkfifo, "is a pipe; a plain file is needed"),
    "directory": (os.mkdir, "is a directory; a plain file is needed"),
    "socket": (a_socket, "is a socket; a plain file is needed"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device; a plain file is needed"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "file", [CONFIG, WEIGHTS, INDEX, "x.safetensors", "tokenizer.json", "preprocessor_config.json"]
)
def test_what_is_no_plain_file(file, kind, right, tmp_path):
    make, message = KINDS[kind]
    directory = shutil.copytree(right["bert"], tmp_path / "model")
    if file in (INDEX, "x.safetensors"):
        (directory / WEIGHTS).unlink()
        index = {"weight_map": {"a": "x.safetensors"}}
        (directory / INDEX).write_text(json.dumps(index))
    (directory / file).unlink(missing_ok=True)
    make(directory / file)
    refused(directory, file, message)


def test_links_to_files_are_plain_files(right, tmp_path):
    """As the hub's cache has them: a snapshot is links into another directory."""
    (tmp_path / "model").mkdir()
    for file in right["bert"].iterdir():
        (tmp_path / "model" / file.name).symlink_to(file)
    read(tmp_path / "model")


def test_a_file_of_json_is_bounded(right, tmp_path, monkeypatch):
    monkeypatch.setattr(json_file, "_MOST_BYTES", 100)
    directory = shutil.copytree(right["bert"], tmp_path / "model")
    refused(directory, CONFIG, "at most 100 are read")


def test_all_that_is_wrong_is_in_one_line(right, tmp_path):
    directory = shutil.copytree(right["vit"], tmp_path / "model")
    raw = json.loads((directory / CONFIG).read_text())
    changes = {"hidden_size": "16", "patch_size": 0, "extra": 1, "is_decoder": True}
    (directory / CONFIG).write_text(json.dumps({**raw, **changes}))
    with pytest.raises(ValueError) as error:
        read(directory)
    assert str(error.value) == (
        f"{directory}/config.json: not implemented for 'vit': extra=1 (unknown key), "
        "is_decoder=True (only False); hidden_size '16' must be a whole number from 1 to 131,072; "
        "patch_size 0 must be a whole number from 1 to 65,536, or two (height, width)"
    )


def test_a_tensor_of_another_type_is_refused(right, tmp_path):
    directory = shutil.copytree(right["bert"], tmp_path / "model")
    found = load_file(directory / WEIGHTS)
    found["classifier.bias"] = found["classifier.bias"].astype("int8")
    save_file(found, directory / WEIGHTS)
    refused(directory, WEIGHTS, "1 misshapen: classifier.bias is I8, expected one of F64")
