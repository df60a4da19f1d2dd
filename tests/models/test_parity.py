"""Every family against PyTorch: one row of FAMILY_ROWS each, the same properties for all."""

import dataclasses
import functools
import re
from collections.abc import Callable
from string import ascii_lowercase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from tokenizers import pre_tokenizers

from jaxft import models, optim
from jaxft.models import Pass, hf
from jaxft.models.checkpoint import names

LABELS = 3
# Tiny models take longer to optimise than to run: level 0 halves the time these tests need.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@dataclasses.dataclass(frozen=True)
class Row:
    """A tiny model of a family in transformers, and a batch for both sides."""

    with_head: type
    token: type | None  # with a head for tokens
    base: type
    config: transformers.PretrainedConfig
    batch: Callable[[np.random.Generator], tuple[dict, dict]]  # (ours, PyTorch's keywords)
    depths: dict[str, int]  # some parameters of the published size
    tokenizer: Callable[[], Any] | None = None  # for texts in characters
    blocks: int = 12  # of the published size


# Weights ten times as large as usual: activations and attention that are far from linear.
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "num_labels": LABELS,
}


def text_batch(rng: np.random.Generator, *, pad: int = 0, types: int = 2) -> tuple[dict, dict]:
    """Three rows of one example each, two of them padded."""
    lengths, width = [9, 5, 7], 9
    mask = np.arange(width) < np.array(lengths)[:, None]
    ids = np.where(mask, rng.integers(pad + 1, 50, mask.shape), pad)
    token_types = np.where(mask & (np.arange(width) > 3), types - 1, 0)
    ours = {
        "input_ids": ids,
        "segment_ids": mask.astype(int),
        "positions": np.where(mask, np.arange(width), 0),
        "token_type_ids": token_types,
        "starts": np.zeros((len(lengths), 1), int),
    }
    theirs = {"input_ids": ids, "attention_mask": mask.astype(int)}
    if types > 1:
        theirs["token_type_ids"] = token_types
    return (
        {name: array.astype(np.int32) for name, array in ours.items()},
        {name: torch.tensor(array) for name, array in theirs.items()},
    )


def image_batch(rng: np.random.Generator) -> tuple[dict, dict]:
    images = rng.normal(size=(3, 8, 12, 2)).astype(np.float32)
    return {"pixel_values": images}, {"pixel_values": torch.tensor(images.transpose(0, 3, 1, 2))}


def vocabulary(*special: str) -> dict[str, int]:
    """Special tokens and bytes as byte-level tokenizers write them, numbered."""
    tokens = (*special, *sorted(pre_tokenizers.ByteLevel.alphabet()))
    return {token: number for number, token in enumerate(tokens)}


def bert_tokenizer() -> Any:
    letters = [*ascii_lowercase, *(f"##{letter}" for letter in ascii_lowercase)]
    tokens = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters)
    return transformers.BertTokenizer(vocab={token: i for i, token in enumerate(tokens)})


def roberta_tokenizer() -> Any:
    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    return transformers.RobertaTokenizer(vocab=vocabulary(*special), merges=[])


def gpt2_tokenizer() -> Any:
    tokens = vocabulary("<|endoftext|>")
    return transformers.GPT2Tokenizer(vocab=tokens, merges=[], pad_token="<|endoftext|>")


def resnet(layer_type: str, **config: Any) -> Row:
    return Row(
        transformers.ResNetForImageClassification,
        None,
        transformers.ResNetModel,
        transformers.ResNetConfig(
            num_channels=2,
            embedding_size=16,
            depths=[1, 1],
            layer_type=layer_type,
            num_labels=LABELS,
            **config,
        ),
        image_batch,
        {
            "resnet/embedder/embedder/convolution/kernel": 0,
            "resnet/encoder/stages/0/layers/0/shortcut/normalization/scale": 1,
            "resnet/encoder/stages/1/layers/0/layer/1/convolution/kernel": 4,
            "resnet/encoder/stages/3/layers/2/layer/0/normalization/bias": 16,
            "classifier/1/kernel": 17,
        },
        blocks=16,
    )


FAMILY_ROWS = {
    "bert": Row(
        transformers.BertForSequenceClassification,
        transformers.BertForTokenClassification,
        transformers.BertModel,
        transformers.BertConfig(vocab_size=50, max_position_embeddings=16, **SIZES),
        text_batch,
        {
            "bert/embeddings/word_embeddings/embedding": 0,
            "bert/embeddings/LayerNorm/scale": 0,
            "bert/encoder/layer/0/attention/self/query/kernel": 1,
            "bert/encoder/layer/1/output/LayerNorm/bias": 2,
            "bert/encoder/layer/11/attention/output/dense/kernel": 12,
            "bert/pooler/dense/kernel": 13,
            "classifier/bias": 13,
        },
        bert_tokenizer,
    ),
    "roberta": Row(
        transformers.RobertaForSequenceClassification,
        transformers.RobertaForTokenClassification,
        transformers.RobertaModel,
        transformers.RobertaConfig(
            vocab_size=50, max_position_embeddings=18, type_vocab_size=1, **SIZES
        ),
        functools.partial(text_batch, pad=1, types=1),
        {
            "roberta/embeddings/position_embeddings/embedding": 0,
            "roberta/encoder/layer/0/attention/self/query/kernel": 1,
            "roberta/encoder/layer/11/output/LayerNorm/bias": 12,
            "classifier/dense/kernel": 13,
            "classifier/out_proj/bias": 13,
        },
        roberta_tokenizer,
    ),
    "gpt2": Row(
        transformers.GPT2ForSequenceClassification,
        None,
        transformers.GPT2Model,
        transformers.GPT2Config(
            vocab_size=50,
            n_positions=16,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_inner=48,
            initializer_range=0.2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
            num_labels=LABELS,
        ),  # fmt: skip
        functools.partial(text_batch, types=1),
        {
            "transformer/wpe/embedding": 0,
            "transformer/h/0/attn/c_attn/kernel": 1,
            "transformer/h/11/mlp/c_proj/bias": 12,
            "transformer/ln_f/scale": 12,
            "score/kernel": 13,
        },
        gpt2_tokenizer,
    ),
    "vit": Row(
        transformers.ViTForImageClassification,
        None,
        transformers.ViTModel,
        transformers.ViTConfig(image_size=(8, 12), patch_size=4, num_channels=2, **SIZES),
        image_batch,
        {
            "vit/embeddings/cls_token": 0,
            "vit/embeddings/patch_embeddings/projection/kernel": 0,
            "vit/encoder/layer/0/layernorm_before/scale": 1,
            "vit/encoder/layer/10/intermediate/dense/kernel": 11,
            "vit/encoder/layer/11/attention/attention/value/bias": 12,
            "vit/layernorm/scale": 12,  # timm: the norm after the blocks belongs to the last one
            "classifier/kernel": 13,
        },
    ),
    "resnet": resnet("bottleneck", hidden_sizes=[32, 128]),
    "resnet-basic": resnet("basic", hidden_sizes=[16, 48], downsample_in_first_stage=True),
}
WITH_DROPOUT = {name for name, family in models.FAMILIES.items() if family.dropouts}
# XLM-RoBERTa, in native_rows.py, is RoBERTa's network; the two residual layers differ in their shapes.
_ALIKE = {"roberta", "resnet-basic"}


def _rows(names: Any) -> list[Any]:
    return [pytest.param(n, marks=pytest.mark.slow) if n in _ALIKE else n for n in names]


every_family = pytest.mark.parametrize("family", _rows(FAMILY_ROWS))
# The last block for the tokens that the head reads, or for all.
EVERYWHERE = Pass(all_positions=True)
both_ways = pytest.mark.parametrize("all_positions", [False, True])
text_family = pytest.mark.parametrize(
    "family", _rows(name for name, row in FAMILY_ROWS.items() if row.batch is not image_batch)
)


def torch_model(family: str, kind: str = "with_head", **changes: Any) -> Any:
    row = FAMILY_ROWS[family]
    config = type(row.config)(**{**row.config.to_dict(), **changes})
    torch.manual_seed(0)
    model = getattr(row, kind)(config).eval()
    # Biases and norms start at 0 and 1, with which a wrong one may go unnoticed.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
            elif name.endswith("num_batches_tracked"):
                buffer.fill_(7)
    return model


def load(directory: Any, num_labels: int = LABELS, **options: Any) -> tuple[Any, Any, Any]:
    architecture = models.load_architecture(str(directory), num_labels=num_labels, **options)
    key = jax.random.key(0)
    params, report = hf.read_params(str(directory), architecture, key=key)
    return architecture, params, report


@functools.cache
def checkpoint(family: str, tmp: Any) -> tuple[Any, Any, Any]:
    """(PyTorch model, our architecture, our parameters) of one tiny checkpoint, saved once."""
    model = torch_model(family)
    model.save_pretrained(tmp / family)
    architecture, params, report = load(tmp / family)
    assert report == names.ReadReport()
    return model, architecture, params


@pytest.fixture(scope="session")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.mktemp("models")


def parts(architecture: Any, whole: Any) -> tuple[Any, Any]:
    """(parameters, batch statistics) of a model's tree, each with holes where the other is."""
    labels = optim.path_map(lambda path, _: path in architecture.depths, whole)
    found = optim.split(whole, labels, names=(True, False))
    return found[True], found[False]


def batches(family: str, seed: int = 0) -> tuple[dict, dict]:
    return FAMILY_ROWS[family].batch(np.random.default_rng(seed))


def random_rates(family: str) -> dict[str, float]:
    """All that can be left out at random, is."""
    return {"stochastic_depth": 0.3} | ({"dropout": 0.3} if family in WITH_DROPOUT else {})


def our_logits(architecture: Any, params: Any, batch: dict, key: Any = None, **options: Any) -> Any:
    how = Pass(**options)
    run = compiled(lambda params, batch, key: architecture.apply(params, batch, key, how))
    return np.asarray(run(params, batch, key)["logits"]).reshape(-1, architecture.num_labels)


def loss(
    architecture: Any, params: Any, batch: dict, labels: np.ndarray, key: Any = None, **options: Any
) -> Any:
    outputs = architecture.apply(params, batch, key, Pass(**options))
    logits = outputs["logits"].reshape(len(labels), -1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def in_our_layout(architecture: Any, named_tensors: dict) -> dict[str, np.ndarray]:
    """PyTorch tensors by parameter path, transposed to our leaves."""
    tensors = {architecture.naming.current(name): x for name, x in named_tensors.items()}
    found = {}
    for path, stored in architecture.stored.items():
        if stored.name in tensors:
            found[path] = tensors.pop(stored.name).detach().numpy().transpose(stored.axes)
    assert not tensors
    return found


def assert_gradients_equal(ours: Any, theirs: dict[str, np.ndarray]) -> None:
    """Of every parameter, to 1e-4 of its largest element."""
    largest = max(np.abs(gradient).max() for gradient in theirs.values())
    for path, gradient in models.by_path(ours).items():
        allowed = 1e-4 * np.abs(theirs[path]).max()
        if path.endswith("/key/bias"):  # 0 in exact arithmetic: softmax does not see it
            allowed = 1e-6 * largest
            assert np.abs(theirs[path]).max() < allowed
        assert np.abs(np.asarray(gradient) - theirs[path]).max() < allowed, path


@every_family
@both_ways
def test_logits_equal_pytorch(family, all_positions, tmp):
    model, architecture, params = checkpoint(family, tmp)
    ours, theirs = batches(family)
    expected = model(**theirs).logits.detach().numpy()
    assert np.ptp(expected) > 0.1
    found = our_logits(architecture, params, ours, all_positions=all_positions)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@every_family
def test_all_positions_are_those_of_pytorchs_last_block(family, tmp):
    model, architecture, params = checkpoint(family, tmp)
    ours, theirs = batches(family)
    kinds = re.compile(r".*(?<!Conv)(Layer|Block)")
    last = [m for m in model.modules() if kinds.fullmatch(type(m).__name__)][-1]
    seen = []
    hook = last.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
    model(**theirs)
    hook.remove()
    expected = seen[0].detach().numpy()
    if expected.ndim == 4:  # feature maps are [B, C, H, W] there
        expected = expected.transpose(0, 2, 3, 1)
    run = compiled(functools.partial(architecture.apply, how=Pass(all_positions=True)))
    found = np.asarray(run(params, ours)["hidden"])
    assert found.shape == expected.shape
    tokens = ours.get("segment_ids", np.ones(found.shape[:2])) > 0  # padding has no meaning
    np.testing.assert_allclose(found[tokens], expected[tokens], atol=1e-5)


@every_family
@both_ways
def test_gradients_equal_pytorch_for_every_parameter(family, all_positions, tmp):
    model, architecture, params = checkpoint(family, tmp)
    ours, theirs = batches(family)
    labels = np.array([0, 2, 1])
    model.zero_grad()
    model(**theirs, labels=torch.tensor(labels)).loss.backward()
    expected = in_our_layout(architecture, {n: p.grad for n, p in model.named_parameters()})
    ours_of = functools.partial(loss, architecture, all_positions=all_positions)
    params, statistics = parts(architecture, params)
    whole = functools.partial(optim.merge, statistics)
    gradients = compiled(jax.grad(lambda p: ours_of(whole(p), ours, labels)))(params)
    assert_gradients_equal(gradients, expected)


@every_family
def test_twenty_steps_of_adamw_track_pytorch_and_survive_the_way_back(family, tmp, tmp_path):
    _, architecture, params = checkpoint(family, tmp)
    model = FAMILY_ROWS[family].with_head.from_pretrained(tmp / family)
    no_decay = [p for p in model.parameters() if p.ndim == 1]
    decay = [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": no_decay, "weight_decay": 0.0}]
    torch_tx = torch.optim.AdamW(groups, lr=3e-3)
    tx = optax.adamw(
        3e-3, weight_decay=0.1, mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)
    )

    @compiled
    def step(params, slots, batch, labels):
        value, gradients = jax.value_and_grad(
            lambda p: loss(architecture, optim.merge(p, statistics), batch, labels)
        )(params)
        updates, slots = tx.update(gradients, slots, params)
        return optax.apply_updates(params, updates), slots, value

    params, statistics = parts(architecture, params)
    slots, ours_lost, theirs_lost = tx.init(params), [], []
    for i in range(20):
        ours, theirs = batches(family, seed=i % 4)
        labels = np.array([0, 1, 2])
        params, slots, value = step(params, slots, ours, labels)
        torch_tx.zero_grad()
        torch_loss = model(**theirs, labels=torch.tensor(labels)).loss
        torch_loss.backward()
        torch_tx.step()
        ours_lost.append(float(value))
        theirs_lost.append(torch_loss.item())
    assert theirs_lost[-1] < theirs_lost[0] - 0.1
    np.testing.assert_allclose(ours_lost, theirs_lost, atol=1e-4)

    params = optim.merge(params, statistics)
    id2label = dict(enumerate(("no", "yes", "maybe")))
    hf.write_checkpoint(
        str(tmp_path / "out"), architecture, params, id2label=id2label, source=None, unchanged=()
    )
    again = FAMILY_ROWS[family].with_head.from_pretrained(tmp_path / "out").eval()
    assert again.config.id2label == id2label
    expected = our_logits(architecture, params, ours)
    np.testing.assert_allclose(again(**theirs).logits.detach().numpy(), expected, atol=1e-5)


@every_family
def test_a_base_model_checkpoint_gets_a_new_head(family, tmp_path):
    model = torch_model(family, "base")
    model.save_pretrained(tmp_path)
    architecture, params, report = load(tmp_path)
    base, leaves = architecture.family.base, models.by_path(params)
    assert {path for path in leaves if not path.startswith(f"{base}/")} == set(report.initialised)
    for path in report.initialised:
        if path.endswith("/bias"):
            assert not np.asarray(leaves[path]).any()
        else:
            assert 0.04 < np.asarray(leaves[path]).std() < 0.3
    body = {f"{base}.{name}": x for name, x in model.state_dict().items()}
    if f"{base}/pooler/dense/kernel" not in leaves:
        body = {name: x for name, x in body.items() if "pooler" not in name}
    expected = in_our_layout(architecture, body)
    assert {*expected, *report.initialised} == set(leaves)
    for path, leaf in expected.items():
        np.testing.assert_array_equal(leaves[path], leaf)


@every_family
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_sharded_files_come_in_and_go_out(family, dtype, tmp_path):
    model = torch_model(family).to(dtype)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    architecture, params, report = load(tmp_path)
    assert report == names.ReadReport()
    expected = in_our_layout(architecture, model.float().state_dict())
    dtypes = {path: leaf.dtype for path, leaf in models.by_path(architecture.whole).items()}
    for path, leaf in models.by_path(params).items():
        assert leaf.dtype == dtypes[path] and (dtypes[path] == jnp.float32 or leaf.ndim == 0)
        np.testing.assert_array_equal(leaf, expected[path])

    # Out again with the lower part as it is on disk and the upper part trained, thus in fp32.
    frozen = [path for path, depth in architecture.depths.items() if depth < 2]
    kept, trained = architecture.family.base, lambda x: x + 0.001
    params = {k: x if k == kept else jax.tree.map(trained, x) for k, x in params.items()}
    hf.write_checkpoint(
        str(tmp_path / "out"), architecture, params, id2label=dict(enumerate("abc")),
        source=str(tmp_path), unchanged=frozen,
    )  # fmt: skip
    again = FAMILY_ROWS[family].with_head.from_pretrained(tmp_path / "out").eval()
    ours, theirs = batches(family)
    found = again(**theirs).logits.detach().numpy()
    np.testing.assert_allclose(found, our_logits(architecture, params, ours), atol=1e-5)


@every_family
def test_a_head_for_other_labels_is_replaced_and_said_so(family, tmp):
    checkpoint(family, tmp)
    architecture, params, report = load(tmp / family, num_labels=LABELS + 2)
    path = architecture.family.heads[architecture.head].classifier
    leaves = models.by_path(params)
    assert leaves[f"{path}/kernel"].shape[1:] == (LABELS + 2,)
    replaced = {leaf for leaf in leaves if leaf.startswith(f"{path}/")}
    assert set(report.initialised) == replaced
    assert set(report.dropped) == {architecture.stored[leaf].name for leaf in replaced}
    assert {architecture.depths[leaf] for leaf in replaced} == {architecture.num_blocks + 1}


@every_family
def test_from_scratch_needs_no_weights(family, tmp, tmp_path):
    FAMILY_ROWS[family].config.save_pretrained(tmp_path)
    architecture = models.load_architecture(str(tmp_path), num_labels=LABELS)
    params, report = hf.read_params(
        str(tmp_path), architecture, key=jax.random.key(0), scratch=True
    )
    assert set(report.initialised) == set(architecture.depths)
    torch.manual_seed(0)
    theirs = FAMILY_ROWS[family].with_head(FAMILY_ROWS[family].config)
    expected = in_our_layout(architecture, theirs.state_dict())
    for path, leaf in models.by_path(params).items():
        if path.startswith("classifier/1/"):  # ResNet's bias is drawn there, and 0 here
            assert bool(leaf.any()) == path.endswith("kernel")
        elif np.ptp(expected[path]) == 0:  # the ones of a norm, the zeros of a bias
            np.testing.assert_array_equal(leaf, expected[path])
        else:
            assert float(leaf.std()) == pytest.approx(expected[path].std(), rel=0.35), path
    logits = our_logits(architecture, params, batches(family)[0])
    assert np.isfinite(logits).all() and np.ptp(logits) > 0


@pytest.mark.parametrize("family", [name for name in FAMILY_ROWS if name in WITH_DROPOUT])
def test_dropout_follows_the_key_and_spares_what_is_frozen(family, tmp):
    checkpoint(family, tmp)
    architecture, params, _ = load(tmp / family, dropout=0.3)
    batch = batches(family)[0]
    keys = jax.random.split(jax.random.key(0), 2)
    logits = functools.partial(our_logits, architecture, params, batch)
    deterministic = logits()
    free, again, other = logits(key=keys[0]), logits(key=keys[0]), logits(key=keys[1])
    np.testing.assert_array_equal(free, again)
    assert min(np.abs(free - other).max(), np.abs(free - deterministic).max()) > 1e-3
    half, whole = (logits(key=keys[0], frozen_blocks=depth) for depth in (1, 3))
    assert min(np.abs(half - free).max(), np.abs(half - deterministic).max()) > 1e-4
    np.testing.assert_allclose(whole, deterministic, atol=1e-5)


@every_family
def test_a_rematerialised_block_draws_its_masks_again(family, tmp):
    checkpoint(family, tmp)
    architecture, params, _ = load(tmp / family, **random_rates(family))
    batch, labels = batches(family)[0], np.array([0, 2, 1])
    options = {"key": jax.random.key(1), "frozen_blocks": 1}

    params, statistics = parts(architecture, params)

    @functools.partial(compiled, static_argnums=1)
    def gradient(params, remat):
        def lost(p):
            whole = optim.merge(p, statistics)
            return loss(architecture, whole, batch, labels, remat=remat, **options)

        return jax.grad(lost)(params)

    pairs = zip(*(jax.tree.leaves(gradient(params, remat)) for remat in (False, True)), strict=True)
    for kept, recomputed in pairs:
        np.testing.assert_allclose(kept, recomputed, rtol=1e-4, atol=1e-6)


@every_family
def test_bf16_compute_is_near_fp32_and_its_gradients_are_fp32(family, tmp):
    _, architecture, params = checkpoint(family, tmp)
    batch, labels = batches(family)[0], np.array([0, 2, 1])
    exact = our_logits(architecture, params, batch)
    rounded = our_logits(architecture, params, batch, dtype=jnp.bfloat16)
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()
    params, statistics = parts(architecture, params)

    def in_bf16(p):
        whole = optim.merge(p, statistics)
        return loss(architecture, whole, batch, labels, dtype=jnp.bfloat16)

    gradient = jax.eval_shape(jax.grad(in_bf16), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.float32)}


@every_family
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_bf16_parameters_have_bf16_gradients_and_train_in_a_scan(family, dtype, tmp):
    """A scan refuses a carry whose dtype changes, as Adam's moments do with their gradient's."""
    _, architecture, params = checkpoint(family, tmp)
    params, statistics = parts(architecture, params)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    batch, labels = batches(family)[0], np.array([0, 2, 1])
    gradient = jax.grad(
        lambda p: loss(architecture, optim.merge(p, statistics), batch, labels, dtype=dtype)
    )
    for path, leaf in models.by_path(jax.eval_shape(gradient, params)).items():
        assert leaf.dtype == jnp.bfloat16, path
    tx = optax.adam(1e-3)

    def step(carry, _):
        params, slots = carry
        updates, slots = tx.update(gradient(params), slots, params)
        return (optax.apply_updates(params, updates), slots), None

    carry = (params, tx.init(params))
    ends = jax.eval_shape(lambda carry: jax.lax.scan(step, carry, length=3)[0], carry)
    assert jax.tree.map(jnp.dtype, ends) == jax.tree.map(jnp.dtype, carry)


@every_family
def test_depths_of_the_published_size(family, tmp_path):
    row = FAMILY_ROWS[family]
    type(row.config)().save_pretrained(tmp_path)  # the defaults are the base size
    architecture = models.load_architecture(str(tmp_path), num_labels=2)
    assert architecture.num_blocks == row.blocks
    assert {path: architecture.depths[path] for path in row.depths} == row.depths
    assert set(architecture.depths.values()) == set(range(row.blocks + 2))


def packed(rows: dict, order: list[list[int]], width: int) -> dict:
    """Puts the examples of one-example rows side by side: order[r] are those of packed row r."""
    slots = max(len(examples) for examples in order)
    names = ("input_ids", "segment_ids", "positions", "token_type_ids")
    batch = {name: np.zeros((len(order), width), np.int32) for name in names}
    batch["starts"] = np.zeros((len(order), slots), np.int32)
    for row, examples in enumerate(order):
        start = 0
        for slot, example in enumerate(examples):
            length = int(rows["segment_ids"][example].sum())
            here = slice(start, start + length)
            for name in names:
                batch[name][row, here] = rows[name][example, :length]
            batch["segment_ids"][row, here] = slot + 1
            batch["starts"][row, slot] = start
            start += length
    return batch


@text_family
def test_packed_rows_give_the_logits_of_rows_of_their_own(family, tmp):
    _, architecture, params = checkpoint(family, tmp)
    rows = batches(family)[0]
    batch = packed(rows, [[2, 0], [1]], width=18)
    alone = our_logits(architecture, params, rows)
    for all_positions in (False, True):
        logits = our_logits(architecture, params, batch, all_positions=all_positions)
        assert len(logits) == 4  # the last slot is empty
        np.testing.assert_allclose(logits[:3], alone[[2, 0, 1]], atol=1e-5)


@text_family
def test_every_token_sees_what_its_family_lets_it_see(family, tmp):
    _, architecture, params = checkpoint(family, tmp)
    batch = {
        name: array[:1] for name, array in batches(family)[0].items()
    }  # one example, no padding
    stem = architecture.prefix(params, batch, 0)

    def hidden_of(token, hidden):
        outputs = architecture.suffix(params, {**stem, "hidden": hidden}, 0, how=EVERYWHERE)
        return outputs["hidden"][0, token].sum()

    gradient = compiled(jax.grad(hidden_of, argnums=1))
    tokens = stem["hidden"].shape[1]
    seen = [np.abs(gradient(token, stem["hidden"])[0]).max(-1) > 0 for token in range(tokens)]
    everything = np.ones((tokens, tokens), bool)
    expected = np.tril(everything) if architecture.family.causal else everything
    np.testing.assert_array_equal(seen, expected)


@text_family
def test_padding_changes_nothing(family, tmp):
    _, architecture, params = checkpoint(family, tmp)
    rows = batches(family)[0]
    wider = {
        name: np.pad(array, ((0, 0), (0, 6))) if name != "starts" else array
        for name, array in rows.items()
    }
    other_tokens = dict(wider, input_ids=np.where(wider["segment_ids"], wider["input_ids"], 7))
    expected = our_logits(architecture, params, rows)
    np.testing.assert_allclose(our_logits(architecture, params, wider), expected, atol=1e-5)
    np.testing.assert_allclose(our_logits(architecture, params, other_tokens), expected, atol=1e-5)


@text_family
def test_an_example_in_a_packed_row_has_no_influence_on_its_neighbour(family, tmp):
    _, architecture, params = checkpoint(family, tmp)
    batch = packed(batches(family)[0], [[2, 0]], width=18)

    def logits_of_slot(hidden, slot):
        outputs = architecture.suffix(params, {**stem, "hidden": hidden}, 0)
        return outputs["logits"][0, slot].sum()

    stem = architecture.prefix(params, batch, 0)
    gradient = compiled(jax.grad(logits_of_slot))
    for slot in range(2):
        influence = np.abs(gradient(stem["hidden"], slot)[0]).max(-1)
        own = batch["segment_ids"][0] == slot + 1
        assert (influence[own] > 0).all() and (influence[~own] == 0).all()


@every_family
@both_ways
def test_prefix_and_suffix_at_every_cut_are_apply_bitwise(family, all_positions, tmp):
    checkpoint(family, tmp)
    architecture, params, _ = load(tmp / family, **random_rates(family))
    batch, key = batches(family)[0], jax.random.key(0)
    how = Pass(frozen_blocks=0, all_positions=all_positions, dtype=jnp.bfloat16)
    # Operation by operation: compiled as one, XLA may merge across the cut and round otherwise.
    whole = architecture.apply(params, batch, key, how)
    for cut in range(architecture.num_blocks + 1):
        carry = architecture.prefix(params, batch, cut, key, how)
        assert carry["hidden"].dtype == jnp.bfloat16
        parts = architecture.suffix(params, carry, cut, key, how)
        assert parts.keys() == whole.keys()
        for name in whole:
            np.testing.assert_array_equal(parts[name], whole[name])
    for cut in (-1, architecture.num_blocks + 1):
        with pytest.raises(
            ValueError, match=rf"upto is {cut}; it may be 0 \(the stem\) to 2 blocks"
        ):
            architecture.prefix(params, batch, cut)


def test_only_hidden_is_cast_to_the_compute_dtype(tmp, monkeypatch):
    """A table of rotations or a bias of positions in bf16 would move tokens."""
    _, architecture, params = checkpoint("bert", tmp)
    backbone = type(architecture.modules(params)[0])
    stem = backbone.stem
    angles = jnp.linspace(0, 1, 9)
    monkeypatch.setattr(backbone, "stem", lambda *given: {**stem(*given), "angles": angles})
    carry = architecture.prefix(params, batches("bert")[0], 2, how=Pass(dtype=jnp.bfloat16))
    assert carry["hidden"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(carry["angles"], angles, strict=True)


def test_images_of_another_size_are_refused(tmp):
    _, architecture, params = checkpoint("vit", tmp)
    with pytest.raises(ValueError, match=r"\(12, 12, 2\), but the checkpoint takes \(8, 12, 2\)"):
        architecture.apply(params, {"pixel_values": np.zeros((1, 12, 12, 2), np.float32)})
