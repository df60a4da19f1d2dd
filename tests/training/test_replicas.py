"""Copies of parameters that differ are found, whatever the cut, and named."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxft.training.mesh import make_parallel
from jaxft.training.replicas import ReplicasDifferError, check_replicas


def tampered(x: jax.Array, device: int) -> jax.Array:
    """The same with one bit of one device's copy flipped."""
    pieces = [np.array(shard.data) for shard in x.addressable_shards]
    pieces[device].reshape(-1).view(np.uint8)[0] ^= 1
    devices = [shard.device for shard in x.addressable_shards]
    arrays = [jax.device_put(p, d) for p, d in zip(pieces, devices, strict=True)]
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, arrays)


@pytest.mark.parametrize("mode", ["shard", "pmap"])
def test_a_flipped_bit_of_one_copy_is_found(mode):
    tree = {"bias": jnp.arange(3.0), "layer": {0: {"kernel": jnp.ones((8, 4))}}}
    if mode == "pmap":
        parallel = make_parallel("pmap")
        placed = parallel.replicate(tree)
    else:
        parallel = make_parallel("shard", data=2, fsdp=4)
        specs = {"bias": PartitionSpec(), "layer": {0: {"kernel": PartitionSpec("fsdp")}}}
        placed = jax.device_put(tree, parallel.shardings(specs))
    check_replicas(placed, stacked=mode == "pmap")
    placed["layer"][0]["kernel"] = tampered(placed["layer"][0]["kernel"], 5)
    said = "copies of layer/0/kernel differ between devices of process 0"
    with pytest.raises(ReplicasDifferError, match=said):
        check_replicas(placed, stacked=mode == "pmap")


def test_what_no_two_devices_have_is_not_compared():
    parallel = make_parallel("shard", fsdp=8)
    placed = jax.device_put({"x": jnp.ones(8)}, parallel.shardings({"x": PartitionSpec("fsdp")}))
    placed["x"] = tampered(placed["x"], 3)
    check_replicas(placed)


# Its number, and the port of process 0.
PROCESS = """
import sys
import jax
number, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"localhost:{port}", 2, number)
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxft.training.mesh import make_parallel
from jaxft.training.replicas import ReplicasDifferError, check_replicas

parallel = make_parallel("shard", data=2, fsdp=2)
place = parallel.shardings({"x": PartitionSpec("fsdp")})["x"]

def placed(value):
    return {"x": jax.make_array_from_callback((4,), place, lambda index: value[index])}

check_replicas(placed(np.arange(4.0)))
print("equal")
try:
    check_replicas(placed(np.arange(4.0) + number))
except ReplicasDifferError as error:
    print(error)
"""


@pytest.mark.slow
def test_processes_whose_copies_differ_find_it_together():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(number), port], text=True, env=environment,
            cwd=Path(__file__).parents[2], stdout=subprocess.PIPE,
        )
        for number in range(2)
    ]  # fmt: skip
    for child in children:
        said, _ = child.communicate(timeout=300)
        equal, differ = [line for line in said.splitlines() if "Gloo" not in line]
        assert child.returncode == 0 and equal == "equal"
        assert differ.startswith("copies of x differ between processes 0 and 1")
