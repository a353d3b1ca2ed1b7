"""One host of a job, or the only one. Run by a test, in a process that has some devices.

Its arguments are a folder, a coordinator's address, the number of hosts, the index of this one, the job, and after how many
looks whether to stop this host says so.
"""

import json
import sys
from pathlib import Path

import jax

from sae_service import hosts, pipeline
from sae_service.spec import JobSpec
from sae_service.storage.objects import Storage
from tests.recorder import Recorder


def main(folder: str, coordinator: str, n_hosts: str, index: str, spec: str, stops_after: str) -> None:
    """Trains, and writes the news beside the checkpoints, if this host has any."""
    if int(n_hosts) > 1:
        hosts.join(coordinator, int(n_hosts), int(index))
    recorder, n_looks, prefix = Recorder(), 0, "jobs/test"

    def should_stop() -> bool:
        nonlocal n_looks
        n_looks += 1
        return n_looks > int(stops_after)

    earlier = sorted((path.name for path in Path(folder, prefix).glob("step-*")), reverse=True)
    job, storage = JobSpec.model_validate_json(spec), Storage(Path(folder).as_uri())
    final = pipeline.run(job, storage, prefix, recorder, should_stop, [f"{prefix}/{name}" for name in earlier])
    news = {
        "key": None if final is None else final.key, "n_devices": jax.device_count(), "resumed_from": earlier,
        "events": recorder.events, "rows": recorder.rows, "checkpoints": [found.key for found in recorder.checkpoints],
    }  # fmt: skip
    Path(folder, f"news-{index}.json").write_text(json.dumps(news))
    hosts.part()


if __name__ == "__main__":
    main(*sys.argv[1:])
