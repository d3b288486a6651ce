"""Describe the files of a checkpoint in its `weights.json`, and check a folder against it.

A manifest may come from an untrusted server. Its paths are relative, have no `..`, and never name the files
in which a fetch keeps its own state.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.spec.errors import CheckpointError, ModelError

MANIFEST = "weights.json"
INCOMPLETE = "weights.incomplete"
"""Marks a folder that a fetch is changing, or in which a fetch was interrupted."""

NUM_HASHERS = 8  # files that are hashed in parallel
_READ_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=@-]{0,254}")  # not hidden, and valid on every file system


class WeightsError(ModelError):
    """Weights cannot be described, checked or fetched."""


def _check_path(path: str) -> str:
    if path in (MANIFEST, INCOMPLETE) or not all(_NAME.fullmatch(name) for name in path.split("/")):
        raise ValueError(f"{path!r} is not a relative path of plain names")
    return path


class WeightFile(BaseModel):
    """A file of a checkpoint, relative to its folder.

    Attributes:
        etag: the version of the file in an S3 bucket without a manifest.
        md5: the MD5 of the content, where that is all that the source knows.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    path: Annotated[str, AfterValidator(_check_path)]
    size_bytes: int = Field(ge=0)
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    etag: str | None = None
    md5: str | None = Field(default=None, exclude=True)

    def with_sha256(self, sha256: str | None) -> WeightFile:
        """Return the description of the file after its content was hashed."""
        return self.model_copy(update={"sha256": sha256, "md5": None})

    def has_content_of(self, other: WeightFile) -> bool:
        """Return whether both are known to have the same content."""
        if self.size_bytes != other.size_bytes:
            return False
        if self.sha256 and other.sha256:
            return self.sha256 == other.sha256
        return self.etag is not None and self.etag == other.etag


class Manifest(BaseModel):
    """The content of `weights.json`. Unknown fields are ignored: a later release may have written them."""

    model_config = ConfigDict(frozen=True, strict=True)

    schema_version: Literal[1] = 1
    files: Annotated[tuple[WeightFile, ...], Field(strict=False)]

    @model_validator(mode="after")
    def _check_files(self) -> Manifest:
        check_paths(self.files)
        for file in self.files:
            if file.sha256 is None:
                raise ValueError(f"{file.path} has no sha256")
        return self

    @classmethod
    def parse(cls, content: bytes, name: str) -> Manifest:
        """Parse a manifest. Raises WeightsError, which contains the name that the caller gives to it."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise WeightsError(f"{name} is not valid: {place} {first['msg']}".strip()) from error

    def write(self, folder: Path) -> None:
        """Write `weights.json`, atomically."""
        unfinished = folder / f".{MANIFEST}"
        with unfinished.open("w") as file:
            file.write(self.model_dump_json(indent=1, exclude_none=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(folder / MANIFEST)


def check_paths(files: Iterable[WeightFile]) -> None:
    """Raise ValueError if two files have the same path, or one path is the folder of another."""
    paths: set[str] = set()
    for file in files:
        if file.path in paths:
            raise ValueError(f"{file.path} is listed twice")
        paths.add(file.path)
    for path in paths:
        for parent in Path(path).parents:
            if str(parent) in paths:
                raise ValueError(f"{parent} is a file and a folder")


def check_complete(folder: Path) -> None:
    """Raise CheckpointError if a fetch into this folder has not ended."""
    if (folder / INCOMPLETE).exists():
        raise CheckpointError(
            folder, "is incomplete: a `python -m model.weights fetch` into it has not ended"
        )


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a folder, None if it has none. Raises WeightsError."""
    path = folder / MANIFEST
    try:
        return Manifest.parse(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error


def is_complete(folder: Path) -> bool:
    """Return whether a folder has all files of its manifest, by their sizes, and no fetch is changing it.

    Raises OSError.
    """
    try:
        manifest = read_manifest(folder)
    except WeightsError:
        return False
    if manifest is None or (folder / INCOMPLETE).exists():
        return False
    return all(_size_problem(folder, file) is None for file in manifest.files)


def describe(folder: Path) -> Manifest:
    """Hash all files of a folder but hidden ones. Raises CheckpointError and WeightsError."""
    check_complete(folder)
    paths = _paths_in(folder)
    if not paths:
        raise WeightsError(f"{folder} has no files")
    try:
        sizes = [(folder / path).stat().st_size for path in paths]
        with ThreadPoolExecutor(NUM_HASHERS) as hashers:
            digests = list(hashers.map(lambda path: hash_file(folder / path), paths))
        return Manifest(
            files=tuple(
                WeightFile(path=path, size_bytes=size, sha256=digest)
                for path, size, digest in zip(paths, sizes, digests, strict=True)
            )
        )
    except ValidationError as error:
        raise WeightsError(error.errors()[0]["msg"]) from error
    except OSError as error:
        raise WeightsError(f"{error.filename} cannot be read: {error.strerror}") from error


def verify(folder: Path) -> list[str]:
    """Check a folder against its manifest, and return what is wrong: sizes first, then hashes in parallel.

    Raises CheckpointError if a fetch has not ended, and WeightsError if there is no valid manifest.
    """
    check_complete(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise WeightsError(f"{folder / MANIFEST} is missing")
    listed = {file.path for file in manifest.files}
    unlisted = [f"{path} is not in {MANIFEST}" for path in _paths_in(folder) if path not in listed]
    with ThreadPoolExecutor(NUM_HASHERS) as hashers:
        sizes = [_size_problem(folder, file) for file in manifest.files]
        whole = [file for file, problem in zip(manifest.files, sizes, strict=True) if problem is None]
        contents = list(hashers.map(lambda file: content_problem(folder, file), whole))
    return [problem for problem in (*sizes, *contents, *unlisted) if problem is not None]


def hash_file(path: Path, algorithm: str = "sha256", check: Callable[[], None] = lambda: None) -> str:
    """Return the digest of a file in hexadecimal digits. What `check` raises stops it. Raises OSError."""
    digest = hashlib.new(algorithm, usedforsecurity=algorithm != "md5")
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            check()
            digest.update(block)
    return digest.hexdigest()


def content_problem(folder: Path, file: WeightFile, check: Callable[[], None] = lambda: None) -> str | None:
    """Hash a file and return what is wrong with it, None if nothing is. What `check` raises stops it."""
    try:
        same = hash_file(folder / file.path, check=check) == file.sha256
    except OSError as error:
        return f"{file.path} cannot be read: {error.strerror}"
    return None if same else f"{file.path} has other content"


def _size_problem(folder: Path, file: WeightFile) -> str | None:
    path = folder / file.path
    if not path.is_file():
        return f"{file.path} is missing"
    size = path.stat().st_size
    return None if size == file.size_bytes else f"{file.path} has {size} bytes, not {file.size_bytes}"


def _paths_in(folder: Path) -> Collection[str]:
    """Return the relative paths of all files that belong to a checkpoint: no hidden ones, no manifest."""
    paths = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(parent, name).relative_to(folder) for name in names if not name.startswith(".")]
    return sorted(str(path) for path in paths if str(path) not in (MANIFEST, INCOMPLETE))
