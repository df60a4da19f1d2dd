"""The report is read back as a browser would: parsed, its text and its pictures looked at."""

import base64
import functools
import io
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from PIL import Image

from jaxft.analysis import drawing, mistakes, plots, report
from jaxft.analysis.confusion import confusion
from jaxft.analysis.metrics import classification_metrics, outcomes, prediction_rows
from jaxft.analysis.page import Html, element, table
from jaxft.analysis.pictures import inline, thumbnail
from jaxft.analysis.record import read_record
from jaxft.analysis.sections import layer_rates

DEFAULTS = {
    "task": "",
    "optim": {"lr": 5e-5, "b1": 0.9},
    "model": {"path": ""},
    "data": {"text": ()},
}
write_report = functools.partial(report.write_report, view=mistakes.VIEW)


class Page(HTMLParser):
    """Tags, attributes and text of a page; checks that every element is closed."""

    VOID = ("meta", "br", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words, self.sections = [], [], [], {}
        self.current = None
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "section":
            self.current = dict(attributes)["id"]

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.words.append(data)
            self.sections[self.current] = self.sections.get(self.current, "") + data + " "

    @property
    def text(self):
        return " ".join(self.words)


def logits_for(labels, classes, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(labels), classes))
    logits[np.arange(len(labels)), labels] += 2
    return logits


def make_run(directory, names, inputs=None, kind="text", **summary):
    """A finished run with two evaluations, a resume and a test split."""
    directory.mkdir(exist_ok=True)
    labels = np.arange(20 * len(names)) % len(names)
    logits = logits_for(labels, len(names))
    outcome = outcomes(logits, labels)
    metrics, counted = classification_metrics(outcome, labels, names)
    rows = [
        {"kind": "train", "step": s, "epoch": s / 10, "loss": 2 / s, "learning_rate": 1e-4}
        for s in range(1, 21)
    ]
    rows += [
        {"kind": "eval", "split": "eval", "step": s, "epoch": s / 10, **metrics} for s in (10, 20)
    ]
    rows.append({"kind": "event", "step": 10, "name": "resume", "message": "continued"})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_json(
        directory / "config.json", {"task": "text_classification", "optim": {"lr": 1e-4, "b1": 0.9}}
    )
    write_json(directory / "parameters.json", PARAMETERS)
    inputs = inputs or [f"input {i}" for i in range(len(labels))]
    (directory / "predictions").mkdir(exist_ok=True)
    predicted = prediction_rows(
        outcome, labels, names, index=np.arange(len(labels)), kind=kind, inputs=inputs
    )
    (directory / "predictions/test.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in predicted)
    )
    for split in ("eval", "test"):
        write_json(directory / f"predictions/{split}.confusion.json", counted.to_json())
    write_json(
        directory / "summary.json",
        {
            "task": "text_classification",
            "model": "models/tiny",
            "data": {"train": 100, "eval": 20, "test": len(labels)},
            "steps": 20,
            "epochs": 2.0,
            "best_step": 10,
            "best_metric": {"name": "accuracy", "value": metrics["accuracy"]},
            "stopped_early": False,
            "eval": metrics,
            "test": metrics,
            "seconds": {"total": 10.0, "compile": 2.0, "train": 6.0, "eval": 1.0, "save": 0.5},
            "examples_per_second": 120.0,
            "parameters": {"total": 1000, "trainable": 400},
            "versions": {"jax": "0.10.2"},
            "device": "1 x TestDevice",
            "initialised": ["classifier/kernel"],
            "shapes": [[8, 64]],
            "padding_efficiency": 0.9,
            **summary,
        },
    )
    return metrics


def write_json(path, value):
    path.write_text(json.dumps(value))


def parameter(path, depth, size, scale, trainable=True, placement=(None,)):
    return {
        "path": path, "shape": [size], "size": size, "depth": depth, "trainable": trainable,
        "lr_scale": scale, "weight_decay": 0.0, "placement": list(placement),
    }  # fmt: skip


PARAMETERS = [
    parameter("stem/a", 0, 10, 0.0, trainable=False),
    parameter("block/a", 1, 1500, 0.25, placement=("fsdp",)),
    parameter("block/b", 1, 500, 0.5),
    parameter("block/c", 1, 7, 0.0, trainable=False),
    parameter("head/a", 2, 30, 1.0),
]


def svgs_of(text):
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.S)]


def test_a_finished_run(tmp_path):
    metrics = make_run(tmp_path, ["no", "yes"])
    path = write_report(tmp_path, defaults=DEFAULTS)
    assert path == tmp_path / "report.html"
    assert not list(tmp_path.glob("*.tmp"))
    text = path.read_text()
    page = Page(text)
    assert f"{metrics['accuracy']:.1%} of 40 test examples are classified correctly" in page.text
    assert "always giving the most frequent label would be right for 50.0%" in page.text
    assert "The checkpoint is that of step 10" in page.text
    assert "over fsdp: 1; whole on every device: 4" in page.text
    assert "step 10: resume – continued" in page.sections["training"]
    assert f"{metrics['per_class']['yes']['f1']:.3f}" in page.sections["predictions"]
    assert "1 x TestDevice" in page.sections["environment"]
    assert "120.0 examples a second" in page.sections["time"]
    assert "5.0%" in page.sections["time"]  # 0.5 s that no phase accounts for
    changed, rest = page.sections["configuration"].split("fields at their defaults")
    assert "optim.lr" in changed and "5e-05" in changed and "optim.b1" not in changed
    assert "optim.b1" in rest


def test_the_page_needs_no_other_file(tmp_path):
    make_run(tmp_path, ["no", "yes"])
    text = write_report(tmp_path).read_text()
    for tag, attributes in Page(text).tags:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:")), (tag, name, value)
    assert "url(http" not in text and "@import" not in text


def test_the_curves_show_every_part(tmp_path):
    make_run(tmp_path, ["no", "yes"])
    figures = svgs_of(write_report(tmp_path).read_text())
    assert len(figures) == 4  # curves, schedule, layers, confusion
    words = [" ".join(t.text or "" for t in f.iter() if t.tag.endswith("}text")) for f in figures]
    for word in (
        "Loss",
        "train",
        "eval",
        "accuracy",
        "f1_macro",
        "mcc",
        "epoch",
        "step",
        "1, best",
    ):
        assert word in words[0]
    for word in ("stem", "block 1", "head", "frozen", "1 of 3 tensors frozen", "2 k"):
        assert word in words[2]
    ids = [
        i
        for f in figures
        for i in re.findall(r'id="(p[0-9a-f]{8,})"', ElementTree.tostring(f).decode())
    ]
    assert ids and len(ids) == len(set(ids))  # clip paths of one figure must not cut another


def test_a_single_row_of_training_is_a_dot():
    for draw, colour, name in (
        (lambda rows: plots.curves(rows, [], [], None, "accuracy", ()), drawing.INK, "loss"),
        (plots.schedule, drawing.BLUE, "learning_rate"),
    ):
        assert f"fill: {colour.lower()}" in draw([{"step": 9, name: 0.5}])


@pytest.mark.parametrize("classes", [2, 5, 28, 40, 80])
def test_any_number_of_labels(tmp_path, classes):
    names = [f"label {i}" for i in range(classes)]
    make_run(tmp_path, names)
    page = Page(write_report(tmp_path).read_text())
    assert all(f"label {i} " in page.sections["predictions"] for i in range(classes))
    assert ("Most frequent confusions" in page.text) == (classes > 6)


def test_thousands_of_labels_make_a_small_page(tmp_path):
    names = [f"label {i}" for i in range(3000)]
    labels = np.arange(6000) % 3000
    make_run(tmp_path, ["no", "yes"])
    counted = confusion(labels, np.where(labels < 7, 2999, labels), names)
    write_json(tmp_path / "predictions/test.confusion.json", counted.to_json())
    text = write_report(tmp_path).read_text()
    section = Page(text).sections["predictions"]
    assert "100 of 3,000 labels" in section and "Most frequent confusions" in section
    assert all(f"label {i} " in section for i in (0, 6, 2999)) and len(text) < 300_000


HOSTILE = [
    "<script>alert(1)</script>",
    "a & b \"c\" 'd'",
    "$x_{",
    "日本語",
    "\x00\x1b\ud800",
    "[/INST] [red]",
    "x" * 500,
]


def test_data_is_never_html(tmp_path):
    names = HOSTILE
    labels = 20 * len(names)
    make_run(
        tmp_path, names, inputs=[f"</td><img src=x onerror=alert({i})>" for i in range(labels)],
        model="<b>model</b>", versions={"<i>": "<u>"}, device="<s>", initialised=["<em>"],
    )  # fmt: skip
    write_json(tmp_path / "config.json", {"data": {"train": "<marquee>"}, "<q>": "<a href=x>"})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        event = {"kind": "event", "step": 3, "name": "<h6>", "message": "<h5>&amp;"}
        file.write(json.dumps(event) + "\n")
    text = write_report(tmp_path, defaults=DEFAULTS).read_text(encoding="utf-8")
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "b", "i", "u", "s", "em", "marquee", "q", "h5", "h6"}
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert "[/INST] [red]" in page.sections["predictions"]
    assert "<script>alert(1)</script>" in page.text and "<h5>&amp;" in page.text
    svgs_of(text)  # still well-formed XML


def test_a_run_that_kept_the_confusion_among_its_metrics_still_reports_it(tmp_path):
    make_run(tmp_path, ["no", "yes"])
    new = Page(write_report(tmp_path).read_text()).sections["predictions"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    for split in ("eval", "test"):
        counted = json.loads((tmp_path / f"predictions/{split}.confusion.json").read_text())
        summary[split]["confusion"] = counted["matrix"]
        del summary[split]["majority_accuracy"]
        (tmp_path / f"predictions/{split}.confusion.json").unlink()
    write_json(tmp_path / "summary.json", summary)
    old = Page(write_report(tmp_path).read_text())
    assert old.sections["predictions"] == new and "right for 50.0%" in old.text


def test_mistakes_are_sorted_by_confidence(tmp_path):
    make_run(tmp_path, ["no", "yes"])
    rows = [
        {
            "index": i,
            "label": "no",
            "predicted": p,
            "probability": q,
            "text": f"text {i}",
            "loss": 1.0,
        }
        for i, (p, q) in enumerate([("yes", 0.6), ("no", 0.99), ("yes", 0.9), ("yes", 0.7)])
    ]
    path = tmp_path / "predictions/test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"index": 9, "lab')
    section = Page(write_report(tmp_path).read_text()).sections["mistakes"]
    assert "3 of 4 examples" in section and "text 1" not in section
    assert section.index("text 2") < section.index("text 3") < section.index("text 0")
    path.write_text(json.dumps(rows[1]) + "\n")
    assert "All 1 examples are classified correctly" in write_report(tmp_path).read_text()


def test_images_are_inside_the_page_if_they_can_be_read(tmp_path):
    labels = 40
    good, broken = tmp_path / "a.png", tmp_path / "b.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(good)
    broken.write_bytes(good.read_bytes()[:40])
    paths = [str([good, broken, tmp_path / "gone.png"][i % 3]) for i in range(labels)]
    make_run(tmp_path / "run", ["no", "yes"], inputs=paths, kind="image")
    text = write_report(tmp_path / "run").read_text()
    page = Page(text)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert images and all(a["src"].startswith("data:image/png;base64,") for a in images)
    assert "gone.png" in page.sections["mistakes"] and "b.png" in page.sections["mistakes"]
    assert thumbnail(str(good)) and thumbnail(str(broken)) is None
    assert thumbnail("sklearn:digits:test[3]") is None and thumbnail("") is None
    assert thumbnail(str(tmp_path)) is None


def test_images_are_named_by_their_file(tmp_path):
    paths = [f"/data/train/cat <{i}>/{i}.png" for i in range(40)]
    make_run(tmp_path, ["no", "yes"], inputs=paths, kind="image")
    record = read_record(tmp_path)
    wrong = [r for r in record.predictions["test"] if r["label"] != r["predicted"]]
    section = Page(write_report(tmp_path).read_text()).sections["mistakes"]
    assert wrong and all(f"cat <{r['index']}>/{r['index']}.png" in section for r in wrong[:24])


@pytest.mark.parametrize("shape", [(8, 8), (28, 28, 1), (32, 32, 3)])
def test_tiny_images_without_a_file_travel_as_text(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    uri = inline(pixels)
    assert len(uri) < 5000
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels.squeeze())
    found = thumbnail(uri)
    assert found is not None and found[0].startswith("data:image/png;base64,") and found[1]
    assert thumbnail("data:image/png;base64,AAAA") is None
    assert inline(np.zeros((33, 8), np.uint8)) == "" == inline(np.zeros((8, 8), np.float32))


FILES = [
    "config.json",
    "metrics.jsonl",
    "parameters.json",
    "summary.json",
    "predictions/test.jsonl",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [None, "", '{"cut": [1, 2'])
def test_a_missing_or_broken_file_is_said_and_the_rest_is_shown(tmp_path, name, content):
    make_run(tmp_path, ["no", "yes"])
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    page = Page(write_report(tmp_path, defaults=DEFAULTS).read_text())
    if not content:
        stated = "predictions/" if "predictions" in name else name
        assert f"No {stated}" in page.text
    assert len(page.sections) > 6


FOREIGN = [None, 10**30, float("nan"), "<script>", [[1]], {"a": 1}]


@pytest.mark.parametrize("value", FOREIGN, ids=repr)
def test_foreign_content_never_costs_the_page(tmp_path, value):
    """Each file in turn is replaced, and so is each value in it, and each value of its rows."""
    make_run(tmp_path, ["no", "yes"])
    summary = json.loads((tmp_path / "summary.json").read_text())
    write_json(tmp_path / "summary.json", {**dict.fromkeys(summary, value), "task": value})
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        for row in [rows[0], rows[-1], rows[-2]]:
            for name in row:
                file.write(json.dumps({**row, name: value}) + "\n")
                file.write(json.dumps({k: v for k, v in row.items() if k != name}) + "\n")
        file.write(json.dumps(value) + "\n" + "[" * 2000 + "\n")
    write_json(
        tmp_path / "parameters.json", [value, *({**PARAMETERS[1], k: value} for k in PARAMETERS[1])]
    )
    path = tmp_path / "predictions/test.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    with path.open("a") as file:
        for name in first:
            file.write(json.dumps({**first, name: value}) + "\n")
    page = Page(write_report(tmp_path, defaults=DEFAULTS).read_text())
    assert len(page.sections) > 6 and "script" not in {tag for tag, _ in page.tags}
    assert "optim.lr" in page.sections["configuration"]  # the parts that are whole are shown


@pytest.mark.parametrize("value", [True, [[1]]], ids=repr)
def test_files_of_something_else_are_as_if_they_were_missing(tmp_path, value):
    make_run(tmp_path, ["no", "yes"])
    for name in ("config.json", "predictions/test.confusion.json", "summary.json"):
        write_json(tmp_path / name, value)
    page = Page(write_report(tmp_path, defaults=DEFAULTS).read_text())
    assert "No summary.json" in page.text and "No config.json" in page.text


def test_files_that_are_no_files_are_passed_over(tmp_path):
    make_run(tmp_path, ["no", "yes"])
    for name in ("metrics.jsonl", "summary.json", "predictions/test.confusion.json"):
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
    assert "No metrics.jsonl" in Page(write_report(tmp_path).read_text()).text


def test_an_empty_directory_and_none(tmp_path):
    page = Page(write_report(tmp_path).read_text())
    assert "No summary.json" in page.text and "No evaluation yet" in page.text
    with pytest.raises(ValueError, match="no run directory"):
        write_report(tmp_path / "nowhere")


def test_an_unfinished_run_reports_its_latest_evaluation(tmp_path):
    make_run(tmp_path, ["no", "yes"])
    (tmp_path / "summary.json").unlink()
    page = Page(write_report(tmp_path).read_text())
    assert "This is the evaluation after step 20 of an unfinished run" in page.text
    assert "of 40 evaluation examples" in page.text


def test_reports_are_reproducible_and_leave_no_trace_in_matplotlib(tmp_path):
    make_run(tmp_path, ["no", "yes"])
    before = dict(matplotlib.rcParams)
    first = write_report(tmp_path).read_bytes()
    assert write_report(tmp_path).read_bytes() == first
    assert dict(matplotlib.rcParams) == before


def test_a_repeated_evaluation_counts_once(tmp_path):
    make_run(tmp_path, ["no", "yes"])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(
            json.dumps({"kind": "eval", "split": "test", "step": 10, "accuracy": 0.1}) + "\n"
        )
        file.write(
            json.dumps({"kind": "eval", "split": "test", "step": 10, "accuracy": 0.2}) + "\n"
        )
    record = read_record(tmp_path)
    assert [row["accuracy"] for row in record.evals["test"]] == [0.2]
    assert [row["step"] for row in record.evals["eval"]] == [10, 20]


def test_layer_rates_by_depth():
    assert layer_rates(PARAMETERS) == [
        ("stem", 0.0, 0.0, "frozen"),
        ("block 1", 0.25, 0.5, "2 k, 1 of 3 tensors frozen"),
        ("head", 1.0, 1.0, "30"),
    ]
    assert layer_rates([]) == []


def test_strings_are_escaped_unless_they_are_html():
    assert element("p", "<", Html("<br>"), attributes={"title": '"<'}) == (
        '<p title="&quot;&lt;">&lt;<br></p>'
    )
    cells = table(["<", "b"], [["&", Html("<b>1</b>")]], kinds="tn")
    assert "&lt;" in cells and "&amp;" in cells and "<b>1</b>" in cells
