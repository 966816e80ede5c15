"""Where timings are kept: a file for each key, in the project's directory or the user's, and in memory.

A file is replaced as a whole, under a lock, so that any number of processes may record at once and one that is killed
harms nothing. What is not exactly an entry is set aside with a warning. Where nothing can be written, timings last as
long as the process.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from ..geometry import Geometry
from .timings import Entry, Key, Timing, decode, decode_all, encode, seconds_of

VARIABLE = "TRITONBN_CACHE"
"""Names a project's directory of timings, which is read first and written; otherwise the user's is."""

PATIENCE = 2.0
"""Seconds that a call waits for other processes that record."""

SUFFIX, PART = ".timings.json", ".part"
"""Of a file of timings, and of one that is not written to its end yet."""

MOST_BYTES = 64 << 20
"""Of a file of timings."""


class Store:
    """Timings in directories: all are read, an earlier one's go before, and the first is written."""

    def __init__(self, *directories: Path) -> None:
        self.directories = [path for path in directories if path.is_absolute()]
        self.recorded: dict[Key, Entry] = {}
        """By this process, and not on disk."""
        self.has_warned = False

    def load(self, key: Key) -> Entry:
        """All that is known of a key; never raises."""
        entry = Entry(key)
        for directory in reversed(self.directories):
            path = directory / filename(key)
            try:
                kept = read(path, key)
            except OSError:
                continue
            except ValueError:
                kept = self.set_aside(path, key)
            if kept:
                entry.merge(kept)
        if key in self.recorded:
            entry.merge(self.recorded[key])
        return entry

    def record(self, key: Key, geometry: Geometry, timings: Iterable[Timing], if_first: bool = False) -> None:
        """Keep these timings; where they cannot be written, for the rest of this process, and say so once.

        With `if_first` only where no time of this geometry is on disk by then.
        """
        added = self.recorded.pop(key, Entry(key))
        added.exactly(geometry).add(timings)
        try:
            self.write(added, if_first)
        except (OSError, Timeout) as error:
            self.recorded[key] = added
            if self.directories and not self.has_warned:
                self.has_warned = True
                warnings.warn(f"tritonbn: timings are not kept on disk: {error}", RuntimeWarning, stacklevel=2)

    def write(self, added: Entry, if_first: bool = False) -> None:
        """Merge an entry into its file; OSError or filelock's Timeout where that is not possible.

        With `if_first` without the geometries of which the file has times.
        """
        if not self.directories:
            raise OSError("expected an absolute path to a directory of timings, got none")
        directory = self.directories[0]
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / filename(added.key)
        with lock(directory):
            try:
                entry = read(path, added.key) or Entry(added.key)
            except ValueError as error:
                rename(path, error)
                entry = Entry(added.key)
            if if_first:
                added.runs = [run for run in added.runs if not seconds_of(entry.exactly(run.geometry))]
            entry.merge(added)
            replace_file(path, encode(entry))

    def set_aside(self, path: Path, key: Key) -> Entry | None:
        """The entry, if somebody has written it since; else, with a warning, the file gets another name."""
        with suppress(OSError, Timeout), lock(path.parent):
            try:
                return read(path, key)
            except ValueError as error:
                rename(path, error)
        return None

    def files(self) -> list[Path]:
        """Of all entries, in all directories."""
        return [path for directory in self.directories for path in sorted(directory.glob(f"*{SUFFIX}"))]

    def entries(self) -> Iterator[Entry]:
        """All that is known; what is no entry is left alone, and out."""
        keys = set(self.recorded)
        for path in self.files():
            with suppress(OSError, ValueError):
                if (entry := read(path)) and filename(entry.key) == path.name:
                    keys.add(entry.key)
        for key in sorted(keys, key=filename):
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


def lock(directory: Path) -> FileLock:
    """What one process at a time holds, whoever's it is."""
    return FileLock(directory / ".lock", timeout=PATIENCE, mode=0o666)


def read(path: Path, key: Key | None = None) -> Entry | None:
    """The entry in a file, of this key if one is given; None where there is no file.

    ValueError for a file that is anything else, OSError for one that cannot be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # which does not wait for the other end of a pipe
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
            kind = stat.filemode(found.st_mode)
            raise ValueError(f"expected a file of at most {MOST_BYTES} bytes, got {kind} of {found.st_size}")
        data = os.read(handle, MOST_BYTES)
    finally:
        os.close(handle)
    try:
        return decode(data, key)
    except RecursionError as error:
        raise ValueError(str(error)) from error


def rename(path: Path, error: ValueError) -> None:
    """Set aside what is no file of timings."""
    path.replace(path.with_suffix(".damaged"))
    warnings.warn(f"tritonbn: {path} is no file of timings, and is set aside: {error}", RuntimeWarning, stacklevel=2)


def filename(key: Key) -> str:
    """Of a key's file: what can be told at a glance, and a hash of the rest."""
    return f"{key.mode}-{key.dtype}-{hashlib.sha256(encode(Entry(key))).hexdigest()[:16]}{SUFFIX}"


def replace_file(path: Path, data: bytes) -> None:
    """All of it or nothing, whatever happens to this process."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{PART}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def current() -> Store:
    """The store that the environment names."""
    return store_in(os.environ.get(VARIABLE, ""))


@lru_cache(maxsize=16)
def store_in(project: str) -> Store:
    """One store for each directory of a project, "" for none."""
    user = Path(platformdirs.user_cache_dir("tritonbn")) / "timings"
    return Store(Path(project).expanduser().absolute(), user) if project else Store(user)
