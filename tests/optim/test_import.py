"""`import jaxft.optim` brings nothing of the rest with it (benchmarks/import_time.py times it)."""

import subprocess
import sys

PROGRAM = """
import sys
import jax, optax
before = set(sys.modules)
import jaxft.optim
print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))
print(*sorted(name for name in sys.modules if name.partition('.')[0] == 'jaxft'))
"""


def test_it_adds_only_itself_and_the_standard_library():
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    roots, modules = (set(line.split()) for line in run.stdout.splitlines())
    assert roots - {"jaxft"} <= sys.stdlib_module_names
    assert "jaxft.optim" in modules
    assert all(name == "jaxft" or name.startswith("jaxft.optim") for name in modules)
