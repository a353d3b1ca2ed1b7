"""One host of a job, or the only one. Run by a test, in a process that has some devices.

Its arguments are a folder, a coordinator's address, the number of hosts, the index of this one, the job, and whether this
host asks to stop once it has seen metrics (yes, no).
"""

import json
import sys
from pathlib import Path

from sae_service import hosts, pipeline
from sae_service.errors import SAEServiceError
from sae_service.spec import JobSpec
from sae_service.storage.objects import Storage
from tests.recorder import Recorder

PREFIX = "jobs/test"


def main(folder: str, coordinator: str, n_hosts: str, index: str, spec: str, stops: str) -> None:
    """Goes on from what is in the folder, and writes the news beside it."""
    if int(n_hosts) > 1:
        hosts.join(coordinator, int(n_hosts), int(index))
    recorder, found = Recorder(), {"key": None, "error": None}
    earlier = sorted((path.name for path in Path(folder, PREFIX).glob("step-*")), reverse=True)

    def should_stop() -> bool:
        return stops == "yes" and bool(recorder.rows)

    try:
        job, storage = JobSpec.model_validate_json(spec), Storage(Path(folder).as_uri())
        final = pipeline.run(job, storage, PREFIX, recorder, should_stop, [f"{PREFIX}/{name}" for name in earlier])
        found["key"] = None if final is None else final.key
    except SAEServiceError as error:
        found["error"] = f"{error.param}: {error}"
    reported = {"warnings": [said for level, said in recorder.events if level == "warning"], "reported": len(recorder.checkpoints)}
    Path(folder, f"news-{index}.json").write_text(json.dumps(found | reported))
    hosts.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
