"""Where SQLite may keep the service's tables."""

from pathlib import Path

import pytest

from sae_service.errors import StorageFailure
from sae_service.jobs.database import refuse_network_filesystem


def mounts(folder: Path, kind: str) -> Path:
    """The machine's list of mounts with one of this kind at /data."""
    path = folder / "mounts"
    path.write_text(f"/dev/sda / ext4 rw 0 0\nsomewhere /data {kind} rw 0 0\n/dev/sdb /data/scratch xfs rw 0 0\n")
    return path


@pytest.mark.parametrize(
    "kind",
    ["nfs4", "cifs", "lustre", "ceph", "panfs", "wekafs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph-fuse",
     "fuse.gcsfuse"],
)  # fmt: skip
def test_sqlite_on_a_network_filesystem_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(StorageFailure, match=kind):
        refuse_network_filesystem(Path("/data/saes"), mounts(tmp_path, kind))
    refuse_network_filesystem(Path("/data/scratch/saes"), mounts(tmp_path, kind))
    refuse_network_filesystem(Path("/var"), mounts(tmp_path, kind))


@pytest.mark.parametrize("kind", ["ext4", "fuseblk", "fuse.mergerfs", "fuse"])
def test_sqlite_on_a_disk_is_not_refused_whatever_drives_it(tmp_path: Path, kind: str) -> None:
    refuse_network_filesystem(Path("/data/saes"), mounts(tmp_path, kind))
