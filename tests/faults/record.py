"""What the tests of faults saw, for ``docs/faults.md``: a line for every case that passed, where asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

# Names the file that cases are added to (tests/faults/page.py sets it).
VARIABLE = "MOO_FAULTS"


def record(fault: int, case: str, count: int, **measured: Any) -> None:
    """Say that ``count`` times ``case`` of a fault passed; ``measured`` holds numbers with their units in the name."""
    if path := os.environ.get(VARIABLE):
        line = {"fault": fault, "case": case, "count": count, **measured}
        with Path(path).open("a", encoding="utf-8") as out:
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
