"""Bridged models against PyTorch: logits, every gradient, depths, and what is never computed."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxft import optim
from jaxft.config import default_config
from jaxft.experiment.model import open_model
from jaxft.models import Pass, by_path, hf, load_architecture, move_statistics
from tests.bridge.torch_reference import CASES, LABELS, OUTPUTS, cotangent
from tests.bridge.torch_reference import present as tokens

NAMES = (
    "distilbert",
    "llama",
    "llama-unpadded",
    "deberta-v2",
    "electra",
    "convnext",
    "regnet",
    "t5",
    "bart",
    "gpt2",
    "mixtral",
    "albert",
    "pegasus",
    "albert-question",
    "gpt2-question",
    "bart-question",
    "t5-question",
    "xlnet-question",
    "albert-choice",
    "mpnet-choice",
    "xlnet",
    "xlnet-choice",
)


FAST = ("distilbert", "convnext", "gpt2", "albert-question", "albert-choice")


def cases(names):
    """Those that are not FAST are slow."""
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="session")
def reference(tmp_path_factory, request):
    """A folder with a checkpoint and PyTorch's results of each case that is asked for."""
    folder = tmp_path_factory.mktemp("reference")
    names = FAST if request.config.getoption("markexpr") == "not slow" else NAMES
    command = [sys.executable, "-m", "tests.bridge.torch_reference", str(folder), *names]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def load(folder, name, **options):
    """(architecture, parameters) of a case."""
    architecture = load_architecture(
        str(folder / name),
        num_labels=OUTPUTS.get(CASES[name][1], LABELS),
        head=CASES[name][1],
        implementation="bridge",
        **options,
    )
    params, report = hf.read_params(str(folder / name), architecture, key=jax.random.key(0))
    assert not report.initialised and not report.dropped
    return architecture, params


def parts(params, trained):
    """(those parameters, the rest), each with holes where the other is."""
    labels = optim.path_map(lambda path, _: path in trained, params)
    found = optim.split(params, labels, names=(True, False))
    return found[True], found[False]


def torch_tensors(tree):
    """Its leaves as tensors of torch, by their names in files."""
    import torch

    leaves = by_path(tree).items()
    return {path.replace("/", "."): torch.from_numpy(np.array(x)) for path, x in leaves}


def batch_of(arrays):
    """The batch of jaxft that says what transformers was given."""
    if "pixel_values" in arrays:
        return {"pixel_values": jnp.asarray(arrays["pixel_values"]).transpose(0, 2, 3, 1)}
    mask = jnp.asarray(arrays["attention_mask"], jnp.int32)
    ids = jnp.asarray(arrays["input_ids"], jnp.int32) * mask
    starts = jnp.zeros((len(ids), 1), jnp.int32)
    if ids.ndim == 3:  # choices: each in an equal part of its row, which need not divide it
        count, length = ids.shape[1:]
        starts = jnp.broadcast_to(jnp.arange(count) * (length + 1), ids.shape[:2])
        mask *= 1 + jnp.arange(count)[:, None]
        ids, mask = (
            jnp.pad(jnp.pad(x, ((0, 0), (0, 0), (0, 1))).reshape(len(x), -1), ((0, 0), (0, 1)))
            for x in (ids, mask)
        )
    batch = {"input_ids": ids, "segment_ids": mask, "token_type_ids": jnp.zeros_like(ids)}
    batch["starts"] = starts
    if "decoder_input_ids" in arrays:
        batch["decoder_input_ids"] = jnp.asarray(arrays["decoder_input_ids"], jnp.int32)
        batch["decoder_segment_ids"] = jnp.asarray(arrays["decoder_attention_mask"], jnp.int32)
    return batch


def objective(architecture, batch, weights, key=None, **options):
    """(trainable, the rest) -> (a sum that has a gradient, logits)."""

    def value(trained, rest):
        logits = architecture.apply(optim.merge(trained, rest), batch, key, Pass(**options))[
            "logits"
        ]
        logits = logits[:, 0] if architecture.head == "sequence" else logits
        logits = logits[..., 0] if architecture.head == "choice" else logits
        return (logits * weights).sum(), logits

    return value


@pytest.mark.parametrize("name", cases(NAMES))
def test_logits_and_every_gradient_are_pytorchs(reference, name):
    architecture, params = load(reference, name)
    arrays = np.load(reference / f"{name}.npz")
    weights = cotangent(arrays["logits"].shape)
    present = tokens(architecture.head, arrays)
    trained, rest = parts(params, architecture.depths)
    step = jax.jit(
        jax.value_and_grad(
            objective(architecture, batch_of(arrays), weights * present), has_aux=True
        )
    )
    (_, logits), gradients = step(trained, rest)
    gradients = architecture.built.join(torch_tensors(gradients))  # experts one by one in files
    np.testing.assert_allclose(logits * present, arrays["logits"] * present, atol=1e-5)
    seen, largest = 0, max(np.abs(arrays[key]).max() for key in arrays if "gradient" in key)
    for name, gradient in gradients.items():
        key, gradient = f"gradient {name}", gradient.numpy()
        theirs = arrays[key] if key in arrays else np.zeros(gradient.shape, np.float32)
        # Exactly 0 but for rounding is that of key biases.
        scale = max(float(np.abs(theirs).max()), 1e-3, 1e-3 * largest)
        assert np.abs(gradient - theirs).max() <= 1e-4 * scale, name
        seen += key in arrays
    assert seen == sum(key.startswith("gradient") for key in arrays) and seen > 10


@pytest.mark.slow
def test_batch_norms_take_and_move_the_statistics_of_a_batch(reference):
    import torch
    import transformers

    architecture, params = load(reference, "regnet")
    arrays = np.load(reference / "regnet.npz")
    batch = batch_of(arrays)
    padded = {
        "pixel_values": jnp.concatenate([batch["pixel_values"], 9 + batch["pixel_values"][:1]]),
        "weight": jnp.array([1.0, 1.0, 1.0, 0.0]),
    }
    program = jax.jit(functools.partial(architecture.apply, how=Pass(batch_stats=True)))
    outputs = program(params, padded)
    model = transformers.AutoModelForImageClassification.from_pretrained(reference / "regnet")
    with torch.no_grad():
        logits = model.train()(torch.from_numpy(arrays["pixel_values"])).logits.numpy()
    np.testing.assert_allclose(outputs["logits"][:3], logits, atol=1e-4)
    _, statistics = parts(params, architecture.depths)
    for path, x in by_path(move_statistics(statistics, outputs["moments"])).items():
        theirs = model.get_buffer(path.replace("/", ".")).numpy()
        np.testing.assert_allclose(x, theirs, atol=1e-5, rtol=1e-5, err_msg=path)
    upper = jax.eval_shape(
        functools.partial(architecture.apply, how=Pass(batch_stats=True, frozen_blocks=3)),
        params,
        padded,
    )
    above = {path.rpartition("/")[0] for path, d in architecture.statistics.items() if d > 3}
    assert set(upper["moments"]) == above and len(above) < len(outputs["moments"])


DEPTHS = {
    "distilbert": {"distilbert/embeddings/word_embeddings/weight": 0,
                   "distilbert/transformer/layer/1/ffn/lin1/bias": 2, "pre_classifier/weight": 3},
    "llama": {"model/embed_tokens/weight": 0, "model/layers/0/mlp/up_proj/weight": 1,
              "model/norm/weight": 2, "score/weight": 3},
    "deberta-v2": {"deberta/encoder/rel_embeddings/weight": 0, "deberta/encoder/LayerNorm/bias": 2,
                   "deberta/encoder/layer/1/output/dense/bias": 2, "pooler/dense/weight": 3},
    "t5": {"transformer/shared/weight": 0, "transformer/encoder/final_layer_norm/weight": 2,
           "transformer/decoder/block/0/layer/1/EncDecAttention/q/weight": 3,
           "transformer/decoder/final_layer_norm/weight": 4, "classification_head/dense/bias": 5},
    # Counted through stages; what takes a stage down in size belongs to its first block.
    "convnext": {"convnext/embeddings/layernorm/bias": 0,
                 "convnext/encoder/stages/1/downsampling_layer/1/weight": 2,
                 "convnext/encoder/stages/2/layers/1/pwconv1/bias": 4,
                 "convnext/encoder/stages/3/layers/0/pwconv1/bias": 5,
                 "convnext/layernorm/weight": 5, "classifier/weight": 6},
    "regnet": {"regnet/embedder/embedder/convolution/weight": 0,
               "regnet/encoder/stages/2/layers/1/layer/3/convolution/weight": 4,
               "classifier/1/bias": 6},
}  # fmt: skip


@pytest.mark.parametrize("name", cases(DEPTHS))
def test_depths_follow_the_structure(reference, name):
    directory = str(reference / name)
    architecture = load_architecture(
        directory, num_labels=LABELS, head=CASES[name][1], implementation="bridge"
    )
    assert {path: architecture.depths[path] for path in DEPTHS[name]} == DEPTHS[name]
    assert set(architecture.depths.values()) == set(range(architecture.num_blocks + 2))
    assert architecture.depths.keys() | architecture.statistics.keys() == set(
        by_path(architecture.whole)
    )


def test_depths_of_one_s_own(reference):
    directory = str(reference / "distilbert")
    both = {"num_labels": LABELS, "implementation": "bridge"}
    rules = ((r"distilbert/transformer/layer/.*", 1),)
    architecture = load_architecture(directory, depths=rules, **both)
    assert architecture.num_blocks == 1 and architecture.depths["classifier/bias"] == 2
    assert architecture.depths["distilbert/transformer/layer/1/ffn/lin1/bias"] == 1
    with pytest.raises(ValueError, match="'nothing/.*' matches no parameter"):
        load_architecture(directory, depths=(("nothing/.*", 1),), **both)
    with pytest.raises(ValueError, match="no parameter at depth 1"):
        load_architecture(directory, depths=((r"distilbert/transformer/layer/0/.*", 7),), **both)


@pytest.mark.slow
def test_what_files_hold_in_pieces_is_in_pieces(reference):
    """Experts of Mixtral: paths, depths, and tensors as they are written, and initial values."""
    architecture, params = load(reference, "mixtral")
    path = "model/layers/1/mlp/experts/3/w1/weight"
    assert by_path(params)[path].shape == (48, 32) and architecture.depths[path] == 2
    stored = load_file(reference / "mixtral" / "model.safetensors")
    known = {architecture.naming.current(name) for name in stored}
    assert known == {one.name for one in architecture.stored.values()}
    for path, leaf in by_path(jax.jit(architecture.init)(jax.random.key(0))).items():
        assert "norm" in path or abs(float(leaf.std()) - 0.02) < 5e-3, path


@pytest.mark.slow
def test_what_a_module_never_trains_is_no_parameter(reference):
    architecture, _ = load(reference, "pegasus")
    table = "model/decoder/embed_positions/weight"
    assert table in architecture.statistics and table not in architecture.depths


@pytest.mark.parametrize(
    "name",
    ["distilbert", *(pytest.param(n, marks=pytest.mark.slow) for n in ("llama", "convnext"))],
)
def test_what_is_below_the_lowest_trainable_block_has_no_backward_work(reference, name):
    architecture, params = load(reference, name)
    arrays = np.load(reference / f"{name}.npz")
    weights = cotangent(arrays["logits"].shape)

    def flops(above, transform):
        depths = architecture.depths
        trained, rest = parts(params, {path for path in depths if depths[path] > above})
        value = objective(
            architecture, batch_of(arrays), weights, key=jax.random.key(0), frozen_blocks=above
        )
        program = jax.jit(transform(lambda a, b: value(a, b)[0])).lower(trained, rest).compile()
        return program.cost_analysis()["flops"]

    blocks = architecture.num_blocks
    forward, head, all_of_it = (
        flops(blocks, lambda f: f), flops(blocks, jax.grad), flops(-1, jax.grad)
    )  # fmt: skip
    assert head < 1.15 * forward and all_of_it > 2.2 * forward
    assert head < flops(blocks - 1, jax.grad) < all_of_it


def test_dropout_is_of_the_key_and_not_in_the_frozen_prefix(reference):
    architecture, params = load(reference, "distilbert", dropout=0.5)
    batch = batch_of(np.load(reference / "distilbert.npz"))

    @jax.jit
    def logits(key, upto=-1):
        return architecture.apply(params, batch, key, Pass(frozen_blocks=upto))["logits"]

    one, again, other = (logits(jax.random.key(seed)) for seed in (1, 1, 2))
    assert (one == again).all() and abs(one - other).max() > 1e-3

    def hidden_of(key):  # with all blocks frozen, only the head's dropout is left
        return architecture.apply(params, batch, key, Pass(frozen_blocks=architecture.num_blocks))[
            "logits"
        ]

    without = architecture.apply(params, batch)["logits"]
    undropped, _ = load(reference, "distilbert", dropout=0.0)
    assert jnp.allclose(undropped.apply(params, batch, jax.random.key(1))["logits"], without)
    assert abs(jax.jit(hidden_of)(jax.random.key(1)) - without).max() > 1e-3


@pytest.mark.parametrize("name", cases(["distilbert", "regnet"]))
def test_activations_can_be_bfloat16(reference, name):
    architecture, params = load(reference, name)
    batch = batch_of(np.load(reference / f"{name}.npz"))
    forward = functools.partial(architecture.apply, how=Pass(dtype=jnp.bfloat16))
    assert jax.eval_shape(forward, params, batch)["logits"].dtype == jnp.float32
    assert "bf16" in str(jax.make_jaxpr(forward)(params, batch))


@pytest.mark.slow
def test_initial_values_are_the_library_s(reference):
    architecture, _ = load(reference, "distilbert")
    leaves = by_path(jax.jit(architecture.init)(jax.random.key(3)))
    again = by_path(jax.jit(architecture.init)(jax.random.key(3)))
    kernel = leaves["pre_classifier/weight"]
    assert abs(float(kernel.std()) - 0.02) < 2e-3 and not leaves["pre_classifier/bias"].any()
    assert (leaves["distilbert/transformer/layer/0/sa_layer_norm/weight"] == 1).all()
    assert all((leaves[path] == again[path]).all() for path in leaves)


@pytest.mark.parametrize(
    "raw, said",
    [
        ({"model_type": "distilbert", "auto_map": {"AutoModel": "x.Y"}}, "auto_map .*never run"),
        (
            {"model_type": "distillbert"},
            "'distillbert' is not implemented.*did you mean 'distilbert'",
        ),
        ({"model_type": "distilbert", "n_layers": 10**9}, "n_layers 1000000000 is above 1024"),
        ({"model_type": "vits"}, "no class of model_type 'vits' .*'sequence or image'"),
        (
            {"model_type": "distilbert", "dim": 30, "n_heads": 7},
            "transformers cannot make the model",
        ),
    ],
)
def test_what_cannot_be_bridged_is_refused_in_one_line(tmp_path, raw, said):
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=said) as error:
        load_architecture(str(tmp_path), num_labels=2, implementation="bridge")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "raw, reason",
    [
        ({"model_type": "deberta-v2", "conv_kernel_size": 3}, r"conv_kernel_size=3 \(only 0\)"),
        (
            {"model_type": "llama", "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope_parameters .*must be of rope_type",
        ),
    ],
)
def test_what_a_native_family_lacks_is_bridged(tmp_path, raw, reason):
    small = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 50,
             "intermediate_size": 48}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({**small, **raw}))
    note = load_architecture(str(tmp_path), num_labels=2).note
    assert note.startswith("bridge to") and re.search(f"not native, since .*{reason}", note)
    with pytest.raises(ValueError, match=reason):
        load_architecture(str(tmp_path), num_labels=2, implementation="native")
    # What nobody knows is refused as before.
    (tmp_path / "config.json").write_text(json.dumps({**small, **raw, "nonsense": 1}))
    with pytest.raises(ValueError, match="nonsense=1"):
        load_architecture(str(tmp_path), num_labels=2)


def test_a_head_of_tokens_that_a_native_family_lacks_is_bridged(tmp_path):
    raw = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2,
           "vocab_size": 50}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(raw))
    found = load_architecture(str(tmp_path), num_labels=2, head="token")
    assert found.exports == "T5ForTokenClassification" and "not native, since a head" in found.note
    with pytest.raises(
        ValueError, match="'token' is not implemented for .* it has sequence, seq2seq"
    ):
        load_architecture(str(tmp_path), num_labels=2, head="token", implementation="native")
    # A causal head of an encoder would see what it is to predict.
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="'causal' is not implemented for model_type 'bert'"):
        load_architecture(str(tmp_path), num_labels=0, head="causal")


@pytest.mark.parametrize("model_type", ["gpt_neox", "gpt2"])
def test_a_type_without_the_class_of_a_task_is_refused_with_what_is_near(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    config = default_config()
    config.task = "multiple_choice"
    said = rf"'multiple_choice' is not for M: .*{model_type!r} with a head of kind 'choice'"
    with pytest.raises(ValueError, match=f"{said}.*nearest is text_classification") as error:
        open_model(
            config, str(tmp_path), name="M", num_labels=1, new_head=False, vocabulary=0
        )  # fmt: skip
    # What the bridge has is among what it can learn, and what the native family has.
    assert "question_answering" in str(error.value) and "causal_lm" in str(error.value)


def test_a_decoder_that_hears_is_refused_where_texts_are_read(tmp_path):
    """transformers counts Qwen2-Audio among encoder-decoders, but its class reads one row of tokens."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    raw = {"model_type": "qwen2_audio", "text_config": {"model_type": "qwen2", "vocab_size": 50, **sizes},
           "audio_config": {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="takes no decoder_input_ids") as error:
        load_architecture(str(tmp_path), num_labels=0, head="seq2seq")
    assert "\n" not in str(error.value)


def test_stochastic_depth_is_that_of_each_stage_where_a_config_lists_them(tmp_path):
    from transformers import CvtConfig

    from jaxft.models.bridge.module import replace_rates
    from jaxft.models.rates import Rates

    config = CvtConfig()
    assert replace_rates(config, Rates(stochastic_depth=0.2))
    assert config.drop_path_rate == [0.2] * 3


def test_what_cannot_be_traced_is_named_in_one_line():
    import torch

    from jaxft.models.bridge import trace
    from jaxft.models.bridge.norms import BatchNorms

    class Chooses(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    module = Chooses()

    def logits(x):
        return trace.run(
            module,
            {},
            lambda given: module(given["x"]),
            {"x": x},
            key=None,
            training=lambda _: False,
            norms=BatchNorms(None, {}),
        )

    said = "Chooses cannot be traced into JAX: it chooses by the values of its inputs"
    with pytest.raises(ValueError, match=said) as error:
        jax.jit(logits)(jnp.ones(3))
    assert "\n" not in str(error.value)


def test_the_norm_of_zeros_has_the_gradient_of_pytorch():
    import torchax

    import jaxft.models.bridge.trace  # noqa: F401  (brings its operators)

    env = torchax.default_env()

    def length(x):
        with env:
            return env.t2j_iso(env.j2t_iso(x).norm(2, -1)).sum()

    x = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(jax.grad(length)(x), [[0, 0], [0.6, 0.8]], atol=1e-6)
