"""launch/jobset.yaml holds to the published schemas of JobSet and of a Kubernetes Job, and to itself."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from jaxft.experiment.processes import FLAGS
from tests.worlds import ROOT

KUBERNETES = "1.31"  # any of those that the validator has would do


@pytest.fixture
def jobset():
    return yaml.safe_load((ROOT / "launch" / "jobset.yaml").read_text())


def check(jobset: dict) -> None:
    schema = json.loads((Path(__file__).parent / "jobset_schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(jobset)
    for job in jobset["spec"]["replicatedJobs"]:
        as_job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
        kubernetes_validate.validate({**as_job, **job["template"]}, KUBERNETES, strict=True)


def test_it_holds_to_the_schemas(jobset):
    check(jobset)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "failurePolicy", "maxRestart"), 3),
        (("spec", "replicatedJobs", 0, "replica"), 1),
        (("spec", "replicatedJobs", 0, "template", "spec", "completionMode"), 1),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "container"), []),
    ],
)
def test_a_slip_is_seen(jobset, path, value):
    broken = copy.deepcopy(jobset)
    place = broken
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(broken)


def test_its_numbers_and_names_fit_together(jobset):
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    flags = dict(word.removeprefix("--").split("=", 1) for word in container["args"])
    assert {name for name in flags if not name.startswith("config")} <= {
        "workdir", *(flag.name for flag in FLAGS)
    }  # fmt: skip
    assert spec["parallelism"] == spec["completions"] == int(flags["num_processes"])
    # JobSet's own names: <set>-<job>-<index of the job>-<index of the pod>.<set>
    host, port = flags["coordinator"].split(":")
    name = jobset["metadata"]["name"]
    assert host == f"{name}-{job['name']}-0-0.{name}"
    assert {"containerPort": int(port)} in container["ports"]
    volumes = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
