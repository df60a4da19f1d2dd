"""Every native family against its PyTorch model: logits, gradients, steps, and the way back."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch

from jaxft import models, optim
from jaxft.models import hf, vocabulary
from jaxft.models.checkpoint import names, tensors
from tests.models.native_rows import LABELS, ROWS, Row

STEPS = 10
PREDICT_TOKENS = ("causal", "masked", "seq2seq")
# Of heads; of the others LABELS.
OUTPUTS = {**dict.fromkeys(PREDICT_TOKENS, 0), "question": 2, "choice": 1}
# Tiny models take longer to optimise than to run.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
every_row = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * row.slow) for name, row in ROWS.items()],
)


def torch_model(row: Row) -> Any:
    torch.manual_seed(0)
    model = row.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and norms start where a wrong one may go unnoticed
                parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return model


def load(directory: Path, row: Row) -> tuple[Any, Any]:
    labels = OUTPUTS.get(row.head, LABELS)
    architecture = models.load_architecture(str(directory), num_labels=labels, head=row.head)
    params, report = hf.read_params(str(directory), architecture, key=jax.random.key(0))
    assert report == names.ReadReport()
    return architecture, params


def counted(row: Row, ours: dict, theirs: dict) -> tuple[np.ndarray, np.ndarray]:
    """Which logits count, on either side: of tokens those that are no padding, else all."""
    if row.head not in ("token", "question", *PREDICT_TOKENS):
        return np.ones(1, bool), np.ones(1, bool)
    side = "decoder_" if row.head == "seq2seq" else ""
    return ours[f"{side}segment_ids"] > 0, theirs[f"{side}attention_mask"].numpy() > 0


def chosen(logits: Any, counts: np.ndarray) -> Any:
    """[…, C] -> [N, C] of those that count; [3, 1, 1] of three choices -> [1, 3]."""
    return logits.reshape(-1, LABELS) if counts.size == 1 else logits[counts]


def logits_of(outputs: Any) -> Any:
    return outputs["logits"] if "logits" in outputs else vocabulary.logits(outputs)


def by_path(architecture: Any, found: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """PyTorch's tensors in our layout."""
    found = {architecture.naming.current(n): x for n, x in found.items()}
    return {
        path: found[stored.name].detach().numpy().transpose(stored.axes)
        for path, stored in architecture.stored.items()
        if stored.name in found
    }


def assert_gradients_equal(ours: Any, theirs: dict[str, np.ndarray]) -> None:
    """To 1e-4 of the largest of each parameter; to 1e-6 of the largest of all what is exactly 0."""
    largest = max(np.abs(gradient).max() for gradient in theirs.values())
    leaves = models.by_path(ours)
    assert leaves.keys() == theirs.keys()
    for path, gradient in leaves.items():
        own = np.abs(theirs[path]).max()
        allowed = max(1e-4 * own, 1e-6 * largest)
        assert np.abs(np.asarray(gradient) - theirs[path]).max() <= allowed, path


def packed(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The third example behind the first in one row, the second alone."""
    lengths = (rows["segment_ids"] > 0).sum(1)
    batch = {
        name: np.zeros((2, 2 if name == "starts" else 18), np.int32) for name in rows
    }  # one slot is empty
    for row, slot, example, start in ((0, 1, 0, 0), (0, 2, 2, lengths[0]), (1, 1, 1, 0)):
        length = lengths[example]
        for name in ("input_ids", "token_type_ids", "positions"):
            batch[name][row, start : start + length] = rows[name][example, :length]
        batch["segment_ids"][row, start : start + length] = slot
        batch["starts"][row, slot - 1] = start
    return batch


def trained_with(architecture: Any, statistics: Any, counts: np.ndarray, tx: Any) -> Any:
    """(params, slots, batch, labels) -> the same after a step, with loss, logits and gradient before."""

    @compiled
    def step(params, slots, batch, labels):
        def lost(params):
            outputs = architecture.apply(optim.merge(params, statistics), batch)
            logits = chosen(logits_of(outputs), counts)
            costs = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return costs.mean(), logits

        (value, logits), gradient = jax.value_and_grad(lost, has_aux=True)(params)
        updates, slots = tx.update(gradient, slots, params)
        return optax.apply_updates(params, updates), slots, (value, logits, gradient)

    return step


def torch_optimizer(model: Any) -> torch.optim.Optimizer:
    """AdamW in the groups that jaxft makes: no decay of biases and norms."""
    few, many = ([p for p in model.parameters() if (p.ndim > 1) == more] for more in (False, True))
    groups = [{"params": many, "weight_decay": 0.1}, {"params": few, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=3e-3)


def halves(architecture: Any, whole: Any) -> tuple[Any, Any]:
    """(parameters, batch statistics), each with holes where the other is."""
    labels = optim.path_map(lambda path, _: path in architecture.depths, whole)
    found = optim.split(whole, labels, names=(True, False))
    return found[True], found[False]


@every_row
def test_logits_gradients_and_ten_steps_of_adamw_are_pytorchs(name, tmp_path):
    row = ROWS[name]
    model = torch_model(row)
    row.save(model, tmp_path / "in")
    architecture, whole = load(tmp_path / "in", row)
    params, statistics = halves(architecture, whole)
    counts, torch_counts = counted(row, *row.inputs(np.random.default_rng(0)))
    mask = jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    tx = optax.adamw(3e-3, weight_decay=0.1, mask=mask)
    step = trained_with(architecture, statistics, counts, tx)
    slots, torch_tx = tx.init(params), torch_optimizer(model)
    for i in range(STEPS):
        ours, theirs = row.inputs(np.random.default_rng(i % 3))
        expected = chosen(row.logits(model, theirs), torch_counts)
        labels = np.arange(len(expected)) % expected.shape[1]
        params, slots, (value, logits, gradient) = step(params, slots, ours, labels)
        torch_tx.zero_grad()
        torch_value = torch.nn.functional.cross_entropy(expected, torch.tensor(labels))
        torch_value.backward()
        if i == 0:
            assert np.ptp(expected.detach().numpy()) > 0.1
            np.testing.assert_allclose(logits, expected.detach().numpy(), atol=1e-5)
            given = {
                n: torch.zeros_like(p) if p.grad is None else p.grad
                for n, p in model.named_parameters()
            }
            assert_gradients_equal(gradient, by_path(architecture, given))
            first_loss = torch_value.item()
        torch_tx.step()
        assert abs(float(value) - torch_value.item()) < 1e-4, i
    assert torch_value.item() < first_loss - 0.1

    out, trained = tmp_path / "out", optim.merge(params, statistics)
    write(architecture, trained, out, source=None, unchanged=())
    again = chosen(row.logits(row.again(model, out).eval(), theirs), torch_counts)
    final = step(params, slots, ours, labels)[2][1]
    np.testing.assert_allclose(again.detach().numpy(), final, atol=1e-5)


def write(architecture: Any, whole: Any, out: Path, **options: Any) -> None:
    id2label = dict(enumerate(("no", "yes", "maybe")[: architecture.num_labels]))
    options.setdefault("problem_type", None)
    hf.write_checkpoint(str(out), architecture, whole, id2label=id2label, **options)


@every_row
def test_what_is_not_touched_goes_out_bit_for_bit(name, tmp_path):
    row = ROWS[name]
    row.save(torch_model(row), tmp_path / "in")
    architecture, whole = load(tmp_path / "in", row)
    leaves = models.by_path(whole)
    # Copied from the source, and written from the arrays.
    for number, unchanged in enumerate((tuple(leaves), ())):
        out = tmp_path / str(number)
        write(architecture, whole, out, source=str(tmp_path / "in"), unchanged=unchanged)
        before, after = (tensors.entries(str(d)) for d in (tmp_path / "in", out))
        assert after.keys() <= before.keys()
        assert len(after) == len(leaves)
        for tensor, entry in after.items():
            found, given = tensors.read(entry, tensor), tensors.read(before[tensor], tensor)
            assert found.dtype == given.dtype
            np.testing.assert_array_equal(found, given)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * row.slow)
        for name, row in ROWS.items()
        if row.head == "sequence"
    ],
)
def test_packed_rows_give_the_logits_of_rows_of_their_own(name, tmp_path):
    row = ROWS[name]
    row.save(torch_model(row), tmp_path / "in")
    architecture, whole = load(tmp_path / "in", row)
    ours, _ = row.inputs(np.random.default_rng(0))
    run = compiled(lambda whole, batch: architecture.apply(whole, batch)["logits"])
    alone = run(whole, ours)[:, 0]
    together = np.asarray(run(whole, packed(ours))).reshape(4, LABELS)  # the last slot is empty
    np.testing.assert_allclose(together[:3], np.asarray(alone)[[0, 2, 1]], atol=1e-5)
