"""What the README and the page on messages say is what the code does."""

from __future__ import annotations

import ast
import json
import re
import textwrap
from pathlib import Path

import pytest

from jaxft import config_page
from jaxft.config import choose, default_config, override
from jaxft.config_fields import BY_NAME
from jaxft.data.images import IMAGE_COLUMNS
from jaxft.data.labels import LABEL_COLUMNS
from jaxft.data.text import PAIR_COLUMNS, TEXT_COLUMNS
from jaxft.experiment.decide import decide
from jaxft.experiment.length import Length
from jaxft.experiment.optimizer import OptimizerOf, numbers
from jaxft.models import load_architecture
from jaxft.terminal import config_file
from jaxft.terminal.console import COMMANDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
HEAD = "from jaxft.config import default_config\n\ndef get_config(arg=None):\n    config = default_config()\n"


def control() -> list[str]:
    """The paragraphs of the block on layers."""
    section = README.split("### Control of every layer")[1]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1].split("\n\n")


@pytest.fixture(scope="module")
def architecture(tmp_path_factory):
    """A BERT of six blocks; its config is enough."""
    config = {
        "model_type": "bert", "vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 6,
        "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 8,
    }  # fmt: skip
    directory = tmp_path_factory.mktemp("six")
    (directory / "config.json").write_text(json.dumps(config))
    return load_architecture(str(directory), num_labels=2)


def load(tmp_path, lines: str):
    path = tmp_path / "pasted.py"
    path.write_text(HEAD + textwrap.indent(lines, "    ") + "\n    return config\n")
    return config_file.load(str(path))


@pytest.mark.parametrize("upto", [1, 2, 3])
def test_the_block_on_layers_runs_when_pasted(tmp_path, architecture, upto):
    config = load(tmp_path, "\n".join(control()[:upto]))
    length = Length(steps=100, epoch=10)
    decisions = decide(config, architecture, length)
    OptimizerOf(config, decisions, stage=0).base(numbers(config, decisions, length))
    assert decisions.frozen and max(row.lr_scale for row in decisions) == 10
    assert bool(decisions.plan) == (upto == 1) and bool(config.optim.groups) == (upto == 2)


def test_each_line_of_the_block_runs_alone(tmp_path):
    for line in control()[0].splitlines():
        if not line.startswith("#"):
            load(tmp_path, line)


def test_the_readme_names_the_columns_that_are_found():
    section = README.split("### Your data")[1].split("### ")[0]
    for name in (*LABEL_COLUMNS, *TEXT_COLUMNS, IMAGE_COLUMNS[0]):
        assert f"`{name}`" in section, name
    for pair in PAIR_COLUMNS:
        assert f"`{', '.join(pair)}`" in section, pair


@pytest.mark.parametrize(
    "path", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_fields_and_commands_of_the_docs_exist(path):
    text = re.sub(r"`config\.[^`]* does not exist[^`]*`", "", (ROOT / path).read_text())
    for field in re.findall(r"config\.([a-z_]+\.[a-z_0-9]+)\b(?!\()", text):
        name = field.rpartition(".")[2]
        assert field in BY_NAME or name in ("py", "json", "help", "name", "b"), field
    for command in re.findall(r"(?:python -m jaxft\.|`jaxft )([a-z_]+)", text):
        assert command in COMMANDS, command


def messages() -> set[str]:
    """All texts of the package; what is filled in is a hole."""
    found = set()
    for path in (ROOT / "jaxft").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(" ".join(node.value.split()))
    return found


def test_every_message_of_the_page_is_one_of_the_package():
    """The headings are the parts of a message that are always the same, with … for the others."""
    known = messages()
    headings = re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
    assert len(headings) >= 30
    for heading in headings:
        for part in filter(None, map(str.strip, heading.split("…"))):
            assert any(part in text for text in known), part


def test_the_page_on_fields_is_written_from_them():
    """`python -m jaxft.config_page > docs/config.md` makes it so."""
    assert (ROOT / "docs/config.md").read_text() == config_page.page()


def test_recipes_are_combined_and_the_later_counts():
    first, second = {"optim.lr": 1e-4, "train": {"epochs": 2.0}}, {"train.steps": 7}
    config = override(default_config(), first, second)
    assert (config.optim.lr, config.train.epochs, config.train.steps) == (1e-4, None, 7)
    assert override(config, first).train.steps is None and config.train.steps == 7
    with pytest.raises(ValueError, match="optim.lrr does not exist .did you mean 'optim.lr'"):
        override(config, {"optim.lrr": 1})
    with pytest.raises(ValueError, match="both given"):
        override(config, {"train.steps": 1, "train.epochs": 1})
    with pytest.raises(ValueError, match="'hed' is not one of full, head .did you mean 'head'"):
        choose({"full": {}, "head": {}}, "hed")
