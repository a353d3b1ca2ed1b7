"""What a run of faults did, written down as it happens, so that a failure can be read and replayed."""

import json
import time
from pathlib import Path
from random import Random
from typing import Any


class History:
    """One line of JSON for each fault and each result; the first holds the seed of every choice."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.seed, self._began = path, seed, time.monotonic()
        self.random = Random(seed)
        self.add("seed", seed=seed)

    def add(self, kind: str, **what: Any) -> None:
        """Appends a line; `t` counts seconds from the beginning."""
        line = {"t": round(time.monotonic() - self._began, 3), "kind": kind, **what}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    @property
    def seconds(self) -> float:
        """Time since the beginning."""
        return time.monotonic() - self._began
