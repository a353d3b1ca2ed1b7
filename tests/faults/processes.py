"""The processes of one service, found from outside by the data folder in their environment."""

from dataclasses import dataclass
from pathlib import Path

from tests.service import Service, is_alive


@dataclass(frozen=True)
class Process:
    """One process of a service; `module` is what Python runs in it."""

    pid: int
    module: str
    parent: int


def processes(data_dir: Path) -> list[Process]:
    """All that are alive, orphans included."""
    mark = f"SAE_SERVICE_DATA_DIR={data_dir.resolve()}".encode()
    found: list[Process] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark not in (folder / "environ").read_bytes().split(b"\0"):
                continue
            arguments = (folder / "cmdline").read_bytes().decode().split("\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if "-m" in arguments and is_alive(int(folder.name)):
            found.append(Process(int(folder.name), arguments[arguments.index("-m") + 1], parent))
    return found


def workers(data_dir: Path) -> list[Process]:
    """The workers that are alive."""
    return [process for process in processes(data_dir) if process.module == "workers"]


def children(data_dir: Path) -> list[Process]:
    """The training processes that are alive."""
    return [process for process in processes(data_dir) if process.module == "workers.job_process"]


def api_of(service: Service) -> Process:
    """The API's process."""
    (api,) = (process for process in processes(service.data_dir) if process.module == "api")
    return api


def orphans(data_dir: Path) -> list[Process]:
    """Training processes without their worker."""
    present = processes(data_dir)
    alive = {process.pid for process in present}
    return [process for process in present if process.module == "workers.job_process" and process.parent not in alive]
