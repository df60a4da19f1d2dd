"""`python -m jaxft COMMAND …` is `jaxft COMMAND …`."""

from __future__ import annotations

import sys

from jaxft.terminal.console import main

if __name__ == "__main__":
    sys.exit(main())
