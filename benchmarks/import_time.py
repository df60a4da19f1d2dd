"""Seconds that `import jaxft.optim` adds to a program that has imported jax and optax.

    python benchmarks/import_time.py [--rounds 5]

Every round is a fresh process; printed are the smallest and the median, and the modules outside the
standard library that the import brought in (there are to be none but jaxft's own).
"""

import argparse
import statistics
import subprocess
import sys

PROGRAM = """
import sys, time
import jax, optax
before = set(sys.modules)
start = time.perf_counter()
import jaxft.optim
print(time.perf_counter() - start)
roots = {name.partition('.')[0] for name in set(sys.modules) - before}
print(*sorted(roots - sys.stdlib_module_names))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    seconds, brought = [], set()
    for _ in range(parser.parse_args().rounds):
        command = [sys.executable, "-c", PROGRAM]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        took, roots = run.stdout.splitlines()
        seconds.append(float(took))
        brought |= set(roots.split())
    print(
        f"import jaxft.optim: {min(seconds) * 1e3:.0f} ms at least, "
        f"{statistics.median(seconds) * 1e3:.0f} ms in the median; brings {', '.join(sorted(brought))}"
    )


if __name__ == "__main__":
    main()
