"""Folders are described and verified; hostile manifests are refused."""

from __future__ import annotations

import json

import pytest

from model.spec.errors import CheckpointError
from model.weights.__main__ import main
from model.weights.manifest import INCOMPLETE, MANIFEST, Manifest, WeightsError, describe, verify
from tests.model.weights.conftest import SIZES, flip_a_byte, write_files

LARGEST = "dit/diffusion_pytorch_model-00001-of-00002.safetensors"


def test_described_folder_is_as_in_its_manifest(tmp_path):
    write_files(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "lock").touch()
    assert main(["manifest", str(tmp_path)]) == 0
    document = json.loads((tmp_path / MANIFEST).read_text())
    assert {file["path"]: file["size_bytes"] for file in document["files"]} == SIZES
    assert main(["verify", str(tmp_path)]) == 0


def test_describing_again_does_not_list_the_manifest(published):
    assert describe(published) == Manifest.parse((published / MANIFEST).read_bytes(), "it")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (flip_a_byte, f"{LARGEST} has other content"),
        (lambda path: path.write_bytes(b"short"), f"{LARGEST} has 5 bytes, not 300000"),
        (lambda path: path.unlink(), f"{LARGEST} is missing"),
        (lambda path: path.with_name("more").touch(), "dit/more is not in weights.json"),
    ],
)
def test_verify_names_each_difference(published, damage, problem, capsys):
    damage(published / LARGEST)
    assert verify(published) == [problem]
    assert main(["verify", str(published)]) == 1
    output = capsys.readouterr()
    assert problem in output.err
    assert f"python -m model.weights fetch --verify SOURCE {published}" in output.out


def test_incomplete_folder_is_neither_verified_nor_described(published):
    (published / INCOMPLETE).touch()
    for command in (verify, describe):
        with pytest.raises(CheckpointError, match="is incomplete"):
            command(published)


def test_folder_without_manifest_or_files_is_an_error(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 2
    assert main(["manifest", str(tmp_path)]) == 2
    assert "weights.json is missing" in (error := capsys.readouterr().err)
    assert "has no files" in error


def test_name_that_no_manifest_may_contain_is_not_described(tmp_path):
    (tmp_path / "a b").touch()
    with pytest.raises(WeightsError, match="'a b' is not a relative path"):
        describe(tmp_path)


def manifest_of(*files: object, **more: object) -> bytes:
    return json.dumps({"schema_version": 1, "files": files, **more}).encode()


def entry(path: object = "a", size: object = 1, sha256: object = "0" * 64) -> dict[str, object]:
    return {"path": path, "size_bytes": size, "sha256": sha256}


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "/etc/passwd", "..", "../a", "a/../b", "a/..", "a//b", "a/", "./a", "~/a", "a/./b"),
        *(".fetch/lock", "a/.hidden", "weights.json", "weights.incomplete"),
        *("a\\..\\b", "C:a", "a\0b", "a\nb", "a b", "é", "a" * 256, "a\n"),
    ],
)
def test_hostile_path_is_refused(path):
    with pytest.raises(WeightsError, match="is not a relative path"):
        Manifest.parse(manifest_of(entry(path)), "it")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is not valid"),
        (b"[]", "it is not valid"),
        (b"[" * 100_000, "it is not valid"),
        (b'{"files": [1]}', "it is not valid: files.0"),
        (manifest_of(schema_version=2), "schema_version"),
        (manifest_of(entry(), entry()), "a is listed twice"),
        (manifest_of(entry("a"), entry("a/b")), "a is a file and a folder"),
        (manifest_of(entry(size=-1)), "files.0.size_bytes"),
        (manifest_of(entry(size=True)), "files.0.size_bytes"),
        (manifest_of(entry(size=1.5)), "files.0.size_bytes"),
        (manifest_of(entry(size="1")), "files.0.size_bytes"),
        (manifest_of(entry(path=None)), "files.0.path"),
        (manifest_of(entry(sha256=None)), "a has no sha256"),
        (manifest_of(entry(sha256="0" * 63)), "files.0.sha256"),
        (manifest_of(entry(sha256="0" * 64 + "\n")), "files.0.sha256"),
    ],
)
def test_invalid_manifest_is_refused_with_the_place(content, message):
    with pytest.raises(WeightsError, match=message):
        Manifest.parse(content, "it")


def test_fields_of_a_later_release_are_ignored():
    content = manifest_of({**entry(), "license": "MIT"}, created_at="today")
    assert [file.path for file in Manifest.parse(content, "it").files] == ["a"]
