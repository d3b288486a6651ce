"""Fetch weights from a source into a folder, once for each machine.

One process at a time changes the folder; others wait for its lock and then find it complete. Before the first
change the folder is marked with `weights.incomplete`. Files are fetched in ranges into `.fetch/`, several at
a time, and get their names when their hashes are right. At the end, `weights.json` is written and the mark is
removed. After a kill, the next fetch resumes from the ranges that are on the disk.

A complete folder needs no source: if the source is unavailable, the folder stays as it is. With `verify` a
folder is complete only if all its files have the hashes of its manifest.
"""

from __future__ import annotations

import fcntl
import logging
import os
import random
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Never, TextIO, TypeVar

from tqdm import tqdm

from model.weights.manifest import (
    INCOMPLETE,
    MANIFEST,
    Manifest,
    WeightFile,
    WeightsError,
    content_problem,
    hash_file,
    is_complete,
    read_manifest,
)
from model.weights.part import Part
from model.weights.source import Listing, Source, SourceError, SourceUnavailable

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

STATE_FOLDER = ".fetch"
LOG_PROGRESS_EVERY_S = 30.0  # where stderr is not a terminal
UPDATE_TIMEOUT_S, UPDATE_FAILURES = 3.0, 2
"""Limits on looking for an update of a complete folder: a worker waits for the end of the fetch."""


@dataclass(frozen=True)
class FetchOptions:
    """Options and limits of a fetch. Times in seconds.

    Attributes:
        verify: whether to hash all files of a complete folder, and not only compare their sizes.
        max_failures: failures in a row after which a range is given up.
        longest_asked_pause_s: limit on the pauses that a source asks for with Retry-After.
    """

    verify: bool = False
    connections: int = 8
    range_bytes: int = 64 << 20
    max_failures: int = 8
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0
    longest_asked_pause_s: float = 600.0


class Interrupted(Exception):
    """Another thread of the fetch failed, or the process is to end."""


def fetch(source: Source, folder: Path, options: FetchOptions = FetchOptions()) -> None:
    """Make the folder equal to the source. Only files that are missing or differ are downloaded.

    Files that an earlier manifest of the folder lists and the source no longer has are removed; files that no
    manifest lists are left alone. A complete folder is left as it is while the source is unavailable. Raises
    WeightsError.
    """
    try:
        (folder / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
        work = _Fetch(source, folder, options)
        with (folder / STATE_FOLDER / "lock").open("a") as lock:
            if not _try_lock(lock):
                if is_complete(folder) and work.list_files() is None:
                    return  # so that processes do not wait for an unavailable source one after the other
                logger.info("another process fetches into this folder: waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            work.run()
    except OSError as error:
        raise WeightsError(f"{error.filename or folder}: {error.strerror}") from error


def _try_lock(file: TextIO) -> bool:
    """Take the lock of a folder, which the kernel releases with the file. Return False if it is held."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Fetch:
    """Fetch once."""

    def __init__(self, source: Source, folder: Path, options: FetchOptions) -> None:
        self._source = source
        self._folder = folder
        self._options = options
        self._stopping = threading.Event()
        self._progress: tqdm[Never] | None = None

    def run(self) -> None:
        """Fetch what is missing, with the lock of the folder. Raises WeightsError and OSError."""
        listing = self.list_files()
        if listing is None:
            return
        if not listing.has_hashes:
            logger.warning(
                "the source has no %s: sizes are checked, and hashes only where S3 has them", MANIFEST
            )
        old = self._recorded()
        present = self._present(listing.files, old)
        missing = [file for file in listing.files if file.path not in present]
        mark = self._folder / INCOMPLETE
        if not missing and not mark.exists() and old == present:
            logger.info("%s is complete: nothing to fetch", self._folder)
            return
        mark.touch()
        _sync(self._folder)
        fetched = self._download(missing, listing)
        files = {**present, **{file.path: file for file in fetched}}
        for path in old.keys() - files.keys():
            (self._folder / path).unlink(missing_ok=True)
        Manifest(files=tuple(files[file.path] for file in listing.files)).write(self._folder)
        _sync(self._folder)
        mark.unlink()
        logger.info("%s is complete: %d of %d files were fetched", self._folder, len(fetched), len(files))

    def list_files(self) -> Listing | None:
        """Return the files of the source; None if it is unavailable and the folder is complete.

        Raises WeightsError and OSError.
        """
        if is_complete(self._folder):
            limits = replace(
                self._options, max_failures=UPDATE_FAILURES, longest_asked_pause_s=UPDATE_TIMEOUT_S
            )
            try:
                return self._retry(partial(self._source.list_files, UPDATE_TIMEOUT_S), limits)
            except SourceUnavailable as error:
                if not (self._options.verify and self._has_damage()):
                    logger.warning(
                        "%s is unavailable (%s): %s is complete and stays as it is",
                        self._source.name,
                        error,
                        self._folder,
                    )
                    return None
        return self._retry(self._source.list_files, self._options)

    def _has_damage(self) -> bool:
        """Hash all files of the folder's manifest, and return whether one differs."""
        with self._threads() as threads:
            problems = [*threads.map(self._damage, self._recorded().values())]
        return any(problems)

    def _damage(self, record: WeightFile) -> str | None:
        """Hash a file of the folder's manifest, and return and log what is wrong with it."""
        problem = content_problem(self._folder, record, self._check_running)
        if problem:
            logger.warning("%s", problem)
        return problem

    def _recorded(self) -> dict[str, WeightFile]:
        """Return the files of the folder's own manifest by path; none if it has none that can be read."""
        try:
            manifest = read_manifest(self._folder)
        except WeightsError as error:
            logger.warning("%s", error)
            return {}
        return {file.path: file for file in manifest.files} if manifest else {}

    def _present(self, files: Sequence[WeightFile], recorded: dict[str, WeightFile]) -> dict[str, WeightFile]:
        """Return those files that the folder has, with their SHA-256.

        If the folder is complete and `verify` is not set, what its manifest says is believed. Otherwise
        files are hashed.
        """
        believed = {} if (self._folder / INCOMPLETE).exists() else recorded
        with self._threads() as threads:
            found = threads.map(lambda file: self._present_file(file, believed.get(file.path)), files)
            return {file.path: file for file in found if file is not None}

    def _present_file(self, file: WeightFile, record: WeightFile | None) -> WeightFile | None:
        path = self._folder / file.path
        if not path.is_file() or path.stat().st_size != file.size_bytes:
            return None
        if record is not None and record.has_content_of(file):
            is_damaged = self._options.verify and self._damage(record)
            return None if is_damaged else file.with_sha256(record.sha256)
        if file.sha256 is None and file.md5 is None:
            return None
        try:
            if file.md5 is not None and hash_file(path, "md5", self._check_running) != file.md5:
                return None
            sha256 = hash_file(path, check=self._check_running)
        except OSError as error:
            logger.warning("%s cannot be read: %s", file.path, error.strerror)
            return None
        return None if file.sha256 not in (None, sha256) else file.with_sha256(sha256)

    def _download(self, files: Sequence[WeightFile], listing: Listing) -> list[WeightFile]:
        """Download files, and return them with their SHA-256."""
        range_bytes = self._options.range_bytes if listing.has_ranges else 0
        state = self._folder / STATE_FOLDER
        parts = [Part(file, state, range_bytes) for file in files]
        used = {path for part in parts for path in (part.data_path, part.journal_path)}
        for path in set(state.iterdir()) - used - {state / "lock"}:  # of another version of the weights
            path.unlink()
        self._check_disk_space(parts)
        total = sum(part.file.size_bytes for part in parts)
        is_terminal = sys.stderr.isatty()
        with tqdm(
            desc="weights",
            total=total,
            initial=total - sum(part.missing_bytes for part in parts),
            unit="B",
            unit_scale=True,
            mininterval=0.2 if is_terminal else LOG_PROGRESS_EVERY_S,
        ) as self._progress:
            return self._run_in_threads([task for part in parts for task in self._tasks(part)])

    def _tasks(self, part: Part) -> list[Callable[[], WeightFile | None]]:
        ranges = part.missing_ranges()
        if not ranges:
            return [partial(self._install, part)]
        return [partial(self._fetch_range, part, start, end) for start, end in ranges]

    def _run_in_threads(self, tasks: Sequence[Callable[[], WeightFile | None]]) -> list[WeightFile]:
        """Run the tasks, and return the files that they finished. The first error stops all of them."""
        with self._threads() as threads:
            running: list[Future[WeightFile | None]] = [threads.submit(task) for task in tasks]
            finished = [future.result() for future in as_completed(running)]
        return [file for file in finished if file is not None]

    @contextmanager
    def _threads(self) -> Iterator[ThreadPoolExecutor]:
        """Return threads, which are stopped if an error or a signal ends the block."""
        with ThreadPoolExecutor(self._options.connections) as threads:
            try:
                yield threads
            except BaseException:
                self._stopping.set()
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _fetch_range(self, part: Part, start: int, end: int) -> WeightFile | None:
        """Fetch one range. Return the file if this was its last one."""
        self._copy(part, start, end)
        return self._install(part) if part.finish_range(start) else None

    def _install(self, part: Part) -> WeightFile:
        """Give a file its name if its hash is right. Otherwise fetch it once more, as a whole."""
        if not part.matches():
            logger.warning("%s has a wrong hash: fetching it again", part.file.path)
            part.reset()
            for start, end in part.missing_ranges():
                self._copy(part, start, end)
                part.finish_range(start)
            if not part.matches():
                part.discard()
                raise SourceError(f"{part.file.path}: the source has other content than it says")
        return part.install(self._folder / part.file.path)

    def _copy(self, part: Part, start: int, end: int) -> None:
        """Copy the bytes of one range to the disk, resuming where a connection ended."""
        with part.open_at(start) as out:
            if start < end:
                self._retry(partial(self._copy_once, part.file, out, end), self._options, out.tell)

    def _copy_once(self, file: WeightFile, out: BinaryIO, end: int) -> None:
        """Copy the bytes from the position of `out` to `end`, over one connection."""
        for block in self._source.read(file, out.tell(), end):
            self._check_running()
            out.write(block)
            self._report(len(block))
        if out.tell() < end:
            raise SourceUnavailable(f"{file.path}: the connection ended early")

    def _retry(
        self, call: Callable[[], Value], limits: FetchOptions, progress: Callable[[], int] = lambda: 0
    ) -> Value:
        """Return what `call` returns, repeating it with growing pauses while the source is unavailable.

        A failure after some progress counts as the first one.
        """
        failures, before = 0, progress()
        while True:
            try:
                return call()
            except SourceUnavailable as error:
                failures = 1 if progress() > before else failures + 1
                before = progress()
                if failures >= limits.max_failures:
                    raise
                pause_s = _pause_s(failures, error.retry_after_s, limits)
                logger.warning("%s: trying again in %.1f s", error, pause_s)
            if self._stopping.wait(pause_s):
                raise Interrupted

    def _check_running(self) -> None:
        if self._stopping.is_set():
            raise Interrupted

    def _report(self, num_bytes: int) -> None:
        if self._progress is not None:
            self._progress.update(num_bytes)

    def _check_disk_space(self, parts: Sequence[Part]) -> None:
        needed = sum(part.file.size_bytes - part.allocated_bytes for part in parts)
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise WeightsError(f"{self._folder} needs {needed} bytes more, but {free} are free")


def _pause_s(failures: int, retry_after_s: float, limits: FetchOptions) -> float:
    """Return the pause before a repetition: random, so that many machines do not come back at once."""
    pause_s = min(limits.first_pause_s * 2.0 ** (failures - 1), limits.longest_pause_s)
    asked_s = min(retry_after_s, limits.longest_asked_pause_s)
    return max(asked_s, pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - nothing secret


def _sync(folder: Path) -> None:
    """Write the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
