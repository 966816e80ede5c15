"""Where timings are kept: a file for each key, in the project's directory or the user's, and in memory.

A file is replaced as a whole, under a lock, so that any number of processes may record at once and one that is killed
harms nothing. What is not exactly an entry is set aside with a warning. Where nothing can be written, timings last as
long as the process.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from .geometry import Geometry
from .timings import Entry, Key, Timing, decode, decode_all, encode

VARIABLE = "TRITONBN_CACHE"
"""Names a project's directory of timings, which is read first and written; otherwise the user's is."""

PATIENCE = 10.0
"""Seconds to wait for other processes that record."""


class Store:
    """Timings in directories: all are read, an earlier one's go before, and the first is written."""

    def __init__(self, *directories: Path) -> None:
        self.directories = [path for path in directories if path.is_absolute()]
        self.recorded: dict[Key, Entry] = {}
        """By this process."""
        self.is_written = bool(self.directories)

    def load(self, key: Key) -> Entry:
        """All that is known of a key; never raises."""
        entry = Entry(key)
        for directory in reversed(self.directories):
            if kept := read(directory / filename(key), key):
                entry.merge(kept)
        if key in self.recorded:
            entry.merge(self.recorded[key])
        return entry

    def record(self, key: Key, geometry: Geometry, timings: Iterable[Timing]) -> None:
        """Keep these timings; where they cannot be written, for the rest of this process, and say so once."""
        added = Entry(key)
        added.exactly(geometry).add(timings)
        self.recorded.setdefault(key, Entry(key)).merge(added)
        if self.is_written:
            try:
                self.write(added)
            except (OSError, Timeout) as error:
                self.is_written = False
                warnings.warn(f"tritonbn: timings are not kept on disk: {error}", RuntimeWarning, stacklevel=2)

    def write(self, added: Entry) -> None:
        """Merge an entry into its file; OSError or filelock's Timeout where that is not possible."""
        if not self.directories:
            raise OSError("expected an absolute path to a directory of timings, got none")
        directory = self.directories[0]
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / filename(added.key)
        with FileLock(directory / ".lock", timeout=PATIENCE):
            entry = read(path, added.key) or Entry(added.key)
            entry.merge(added)
            replace_file(path, encode(entry))

    def files(self) -> list[Path]:
        """Of all entries, in all directories."""
        return [path for directory in self.directories for path in sorted(directory.glob("*.json"))]

    def entries(self) -> Iterator[Entry]:
        """All that is known."""
        keys = {entry.key for path in self.files() if (entry := read(path))}
        for key in sorted(keys | self.recorded.keys(), key=filename):
            yield self.load(key)

    def export(self, path: Path) -> int:
        """Write all entries into one file to share, and say how many; OSError where that is not possible."""
        entries = list(self.entries())
        replace_file(path, encode(entries))
        return len(entries)

    def take(self, path: Path) -> int:
        """Merge all entries of an exported file, and say how many.

        OSError where it cannot be read or the directory not written, ValueError if it is anything else; nothing is
        merged then.
        """
        entries = decode_all(path.read_bytes())
        for entry in entries:
            self.write(entry)
        return len(entries)


def read(path: Path, key: Key | None = None) -> Entry | None:
    """The entry in a file, of this key if one is given; a file that is anything else is set aside with a warning."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    try:
        return decode(data, key)
    except (ValueError, RecursionError) as error:
        with suppress(OSError):
            path.replace(path.with_suffix(".damaged"))
        warnings.warn(
            f"tritonbn: {path} is no file of timings, and is set aside: {error}", RuntimeWarning, stacklevel=2
        )
        return None


def filename(key: Key) -> str:
    """Of a key's file: what can be told at a glance, and a hash of the rest."""
    return f"{key.mode}-{key.dtype}-{hashlib.sha256(encode(Entry(key))).hexdigest()[:16]}.json"


def replace_file(path: Path, data: bytes) -> None:
    """All of it or nothing, whatever happens to this process."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def current() -> Store:
    """The store that the environment names."""
    return store_in(os.environ.get(VARIABLE, ""))


@lru_cache(maxsize=16)
def store_in(project: str) -> Store:
    """One store for each directory of a project, "" for none."""
    user = Path(platformdirs.user_cache_dir("tritonbn")) / "timings"
    return Store(Path(project).absolute(), user) if project else Store(user)
