"""`python -m benchmarks [name ...]`: runs and prints; nothing here passes or fails."""

from __future__ import annotations

import platform
import sys
from importlib import import_module

NAMES = ("diskqueue", "drain", "ingest", "probes", "start", "history")

if __name__ == "__main__":
    print(f"Python {platform.python_version()}, {platform.machine()}; compare ratios, not rates")
    for name in sys.argv[1:] or NAMES:
        print(f"\n{name}", flush=True)
        for label, text in import_module(f"benchmarks.{name}").figures():
            print(f"  {label:<52} {text}", flush=True)
