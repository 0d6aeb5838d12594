"""`python -m benchmarks [name ...]`: runs and prints; nothing here passes or fails.

Without names all of them, those that take minutes in their short form.
"""

from __future__ import annotations

import platform
import sys
from importlib import import_module

NAMES = ("diskqueue", "drain", "ingest", "fleet", "probes", "whole", "start", "history")

if __name__ == "__main__":
    print(f"Python {platform.python_version()}, {platform.machine()}; compare ratios, not rates")
    for name in sys.argv[1:] or NAMES:
        print(f"\n{name}", flush=True)
        module = import_module(f"benchmarks.{name}")
        run = module.figures if sys.argv[1:] else getattr(module, "short", module.figures)
        for label, text in run():
            print(f"  {label:<52} {text}", flush=True)
