"""`import jaxft.optim` is cheap and brings nothing of the rest with it."""

import subprocess
import sys

PROGRAM = """
import sys, time
import jax, optax
before = set(sys.modules)
start = time.perf_counter()
import jaxft.optim
print(time.perf_counter() - start)
print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))
print(*sorted(name for name in sys.modules if name.partition('.')[0] == 'jaxft'))
"""


def imported():
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    seconds, roots, modules = run.stdout.splitlines()
    return float(seconds), set(roots.split()), set(modules.split())


def test_it_adds_little_time_and_only_the_standard_library():
    # The smallest of three: another process may have had the machine.
    runs = [imported() for _ in range(3)]
    assert min(seconds for seconds, _, _ in runs) < 0.15
    _, roots, modules = runs[0]
    assert roots - {"jaxft"} <= sys.stdlib_module_names
    assert all(name == "jaxft" or name.startswith("jaxft.optim") for name in modules)
    assert not roots & {"flax", "transformers", "ml_collections", "equinox"}
