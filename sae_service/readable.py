"""What may be read: files below the allowed folders of the machine that opens them, regular ones, and not without end."""

import errno
import io
import stat
from dataclasses import dataclass
from pathlib import Path

from sae_service.errors import InvalidSpec

LARGEST_LOOK = 1 << 24
"""Bytes that a look at a file reads at most, and that it unpacks at most."""
HINT = "Whoever runs the service adds a folder with SAE_SERVICE_ALLOWED_ROOTS='[\"/folder\"]'."


@dataclass(frozen=True)
class Roots:
    """The folders below which files may be read, but for those below closed ones. None: everywhere, for a process that reads
    its own user's files.
    """

    folders: tuple[Path, ...] | None
    closed: tuple[Path, ...] = ()

    def hold(self, path: Path) -> bool:
        """Whether `path`, once its links are followed, lies below one of the folders."""
        if self.folders is None:
            return True
        try:
            found = path.resolve()
        except (OSError, RuntimeError, ValueError):  # a loop of links, a name that is too long, a null byte
            return False
        is_closed = any(found.is_relative_to(folder) for folder in self.closed)
        return not is_closed and any(found.is_relative_to(folder) for folder in self.folders)

    def inside(self, name: str, param: str) -> Path:
        """The resolved path of what the field `param` names. Raises InvalidSpec if it lies outside, or can be no file."""
        try:
            path = Path(name).expanduser()
        except RuntimeError:  # no such user
            path = None
        if path is None or not self.hold(path):
            raise self.refusal(name, param)
        try:
            found = path.resolve()
            found.exists()  # which fails for what may not be looked at
            return found
        except (OSError, RuntimeError, ValueError) as error:
            raise InvalidSpec(f"{name} cannot be looked at: {error}", param=param) from error

    def refusal(self, name: str, param: str) -> InvalidSpec:
        """The error for what lies outside. It says nothing of what is there."""
        listed = ", ".join(map(str, self.folders or ()))
        return InvalidSpec(f"{name} lies outside the folders that jobs may read: {listed}.", param=param, hint=HINT)

    def refuse_links_out_of(self, folder: Path, name: str, param: str) -> None:
        """Raises InvalidSpec if a link at any depth below `folder` leads outside. Nothing outside is looked at.

        Args:
            name: what the user calls the folder.
        """
        seen, left = {folder}, [folder]
        while left and self.folders is not None:
            for entry in left.pop().iterdir():
                if entry.is_symlink() and not self.hold(entry):
                    raise self.refusal(f"What the link {entry.name} in {name} names", param)
                if entry.is_dir() and (found := entry.resolve()) not in seen:
                    seen.add(found)
                    left.append(found)


EVERYWHERE = Roots(None)


class Look(io.FileIO):
    """A file that is looked into: a regular one, of which no more than some bytes are read. Raises OSError for more."""

    def __init__(self, path: Path, limit: int = LARGEST_LOOK) -> None:
        """Opens the file. A pipe, a device or a socket is not even opened: that could take for ever."""
        check_regular(path)
        super().__init__(path, "rb")
        self._limit = self._left = limit

    def read(self, size: int | None = -1, /) -> bytes:
        """As any file does."""
        content = super().read(self._left + 1 if size is None or size < 0 else min(size, self._left + 1)) or b""
        self._left -= len(content)
        if self._left < 0:
            raise OSError(errno.EFBIG, f"more than {self._limit} bytes of it would have to be read")
        return content

    def readall(self) -> bytes:
        """As any file does."""
        return self.read()

    def readinto(self, buffer: "bytearray | memoryview", /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As any file does."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def check_regular(path: Path) -> None:
    """Raises OSError if there is no such file, or if it is a folder, a pipe, a device or a socket."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")


def content(path: Path) -> bytes:
    """A small file. Raises OSError if it cannot be read, is no regular file, or has more than LARGEST_LOOK bytes."""
    with Look(path) as file:
        return file.read()
