"""Weights are fetched from an S3 server, with a manifest or with what S3 knows of its files."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import replace

import boto3
import pytest
from boto3.s3.transfer import TransferConfig

from model.weights.__main__ import main
from model.weights.fetch import FetchOptions, fetch
from model.weights.manifest import INCOMPLETE, MANIFEST, WeightsError, verify
from model.weights.open import open_source
from model.weights.source import Listing, S3Access
from tests.model.weights.conftest import SIZES, flip_a_byte, write_files
from tests.model.weights.file_server import Fault, serve_files
from tests.servers import free_port

LARGEST = "dit/diffusion_pytorch_model-00001-of-00002.safetensors"
QUICK = FetchOptions(connections=3, range_bytes=65_536, max_failures=2, first_pause_s=0.01)
IN_PARTS = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20)


@pytest.fixture
def access(s3_bucket):
    server = s3_bucket.server
    return S3Access(server.endpoint_url, server.region, server.access_key_id, server.secret_access_key)


@pytest.fixture
def client(access):
    found = boto3.client(
        "s3",
        endpoint_url=access.endpoint_url,
        region_name=access.region,
        aws_access_key_id=access.access_key_id,
        aws_secret_access_key=access.secret_access_key,
    )
    with closing(found):
        yield found


@pytest.fixture
def uploaded(published, client, s3_bucket):
    """Upload the files without their manifest, and return their folder."""
    (published / MANIFEST).rename(published.parent / MANIFEST)
    for path in SIZES:
        client.upload_file(str(published / path), s3_bucket.name, f"models/next/{path}")
    return published


@pytest.fixture
def fetch_into(access, s3_bucket):
    def run(folder, options=QUICK):
        with closing(open_source(f"s3://{s3_bucket.name}/models/next/", 3, access)) as source:
            fetch(source, folder, options)

    return run


def test_bucket_with_manifest_is_fetched_by_the_command(uploaded, client, s3_bucket, access, tmp_path):
    client.upload_file(str(tmp_path / MANIFEST), s3_bucket.name, f"models/next/{MANIFEST}")
    (tmp_path / "id").write_text(f"{access.access_key_id}\n")
    (tmp_path / "secret").write_text(f"{access.secret_access_key}\n")
    where = ["--s3-endpoint-url", access.endpoint_url, "--s3-region", access.region]
    keys = [
        *("--s3-access-key-id-file", str(tmp_path / "id")),
        *("--s3-secret-access-key-file", str(tmp_path / "secret")),
    ]
    folder = tmp_path / "fetched"
    assert main(["fetch", f"s3://{s3_bucket.name}/models/next", str(folder), *where, *keys]) == 0
    assert (folder / LARGEST).read_bytes() == (uploaded / LARGEST).read_bytes()
    assert verify(folder) == []


def test_bucket_without_manifest_is_fetched_by_its_listing(
    uploaded, fetch_into, client, s3_bucket, tmp_path, caplog
):
    client.put_object(Bucket=s3_bucket.name, Key="models/next/.gitattributes", Body=b"hidden")
    client.put_object(Bucket=s3_bucket.name, Key="models/next/dit/", Body=b"")
    client.put_object(Bucket=s3_bucket.name, Key="models/next-but-one/other", Body=b"other")
    folder = tmp_path / "fetched"
    fetch_into(folder)
    assert "the source has no weights.json" in caplog.text
    assert (folder / LARGEST).read_bytes() == (uploaded / LARGEST).read_bytes()
    assert verify(folder) == []  # the manifest of the folder has the hashes of what was fetched


def test_only_changed_objects_are_fetched(uploaded, fetch_into, client, s3_bucket, tmp_path, caplog):
    folder = tmp_path / "fetched"
    fetch_into(folder)
    times = {path: (folder / path).stat().st_mtime_ns for path in SIZES}
    client.put_object(Bucket=s3_bucket.name, Key=f"models/next/{LARGEST}", Body=bytes(SIZES[LARGEST]))
    with caplog.at_level(logging.INFO):
        fetch_into(folder)
        assert "1 of 4 files were fetched" in caplog.text
        caplog.clear()
        fetch_into(folder)
        assert "nothing to fetch" in caplog.text
    assert [path for path in SIZES if (folder / path).stat().st_mtime_ns != times[path]] == [LARGEST]
    assert (folder / LARGEST).read_bytes() == bytes(SIZES[LARGEST])


def test_object_in_parts_is_known_by_its_version(fetch_into, client, s3_bucket, tmp_path, caplog):
    """The ETag of an object that was uploaded in parts is not an MD5."""
    write_files(tmp_path, {"large": 6 << 20})
    client.upload_file(str(tmp_path / "large"), s3_bucket.name, "models/next/large", Config=IN_PARTS)
    assert "-2" in client.head_object(Bucket=s3_bucket.name, Key="models/next/large")["ETag"]
    folder = tmp_path / "fetched"
    fetch_into(folder)
    with caplog.at_level(logging.INFO):
        fetch_into(folder)
    assert "nothing to fetch" in caplog.text
    assert (folder / "large").read_bytes() == (tmp_path / "large").read_bytes()


def test_damaged_file_of_a_bucket_without_manifest_is_fetched_again(
    fetch_into, client, s3_bucket, tmp_path, caplog
):
    """S3 knows the content of the first file, and only the version of the second one."""
    write_files(tmp_path, {"small": 1000, "large": 6 << 20, "intact": 6 << 20})
    client.upload_file(str(tmp_path / "small"), s3_bucket.name, "models/next/small")
    for name in ("large", "intact"):
        client.upload_file(str(tmp_path / name), s3_bucket.name, f"models/next/{name}", Config=IN_PARTS)
    folder = tmp_path / "fetched"
    fetch_into(folder)
    before = (folder / "intact").stat().st_mtime_ns
    flip_a_byte(folder / "small")
    flip_a_byte(folder / "large")
    with caplog.at_level(logging.INFO):
        fetch_into(folder, replace(QUICK, verify=True))
    assert "2 of 3 files were fetched" in caplog.text
    assert verify(folder) == []
    assert (folder / "intact").stat().st_mtime_ns == before


def test_sha256_of_an_object_is_checked(fetch_into, client, s3_bucket, tmp_path):
    """An object in parts with a SHA-256 of the whole is a file that the folder may already have."""
    content = b"weights"
    client.put_object(Bucket=s3_bucket.name, Key="models/next/a", Body=content, ChecksumAlgorithm="SHA256")
    folder = tmp_path / "fetched"
    folder.mkdir()
    (folder / "a").write_bytes(content)
    before = (folder / "a").stat().st_mtime_ns
    fetch_into(folder)
    assert (folder / "a").stat().st_mtime_ns == before


def test_object_whose_content_is_not_that_of_its_etag_is_refused(
    access, s3_bucket, client, tmp_path, monkeypatch
):
    client.put_object(Bucket=s3_bucket.name, Key="models/next/a", Body=b"weights")
    with closing(open_source(f"s3://{s3_bucket.name}/models/next", 1, access)) as source:
        (file,) = source.list_files().files
        wrong = file.model_copy(update={"md5": "0" * 32})
        monkeypatch.setattr(source, "list_files", lambda: Listing((wrong,), has_hashes=False))
        with pytest.raises(WeightsError, match="other content"):
            fetch(source, tmp_path, QUICK)
    assert not (tmp_path / "a").exists()


def test_object_that_is_replaced_during_the_fetch_is_an_error(access, s3_bucket, client, tmp_path):
    client.put_object(Bucket=s3_bucket.name, Key="models/next/a", Body=b"weights")
    with closing(open_source(f"s3://{s3_bucket.name}/models/next", 1, access)) as source:
        (file,) = source.list_files().files
        client.put_object(Bucket=s3_bucket.name, Key="models/next/a", Body=b"changed")
        with pytest.raises(WeightsError, match="a: S3 answers with"):
            list(source.read(file, 0, 7))


def test_hostile_key_is_refused(fetch_into, client, s3_bucket, tmp_path):
    client.put_object(Bucket=s3_bucket.name, Key="models/next/a/x y", Body=b"weights")
    with pytest.raises(WeightsError, match="is not a relative path"):
        fetch_into(tmp_path / "fetched")


def test_empty_prefix_is_an_error(fetch_into, tmp_path):
    with pytest.raises(WeightsError, match="has no files"):
        fetch_into(tmp_path / "fetched")


def test_bucket_that_does_not_exist_is_an_error(access, tmp_path):
    with (
        closing(open_source("s3://no-such-bucket/models", 1, access)) as source,
        pytest.raises(WeightsError, match="NoSuchBucket"),
    ):
        fetch(source, tmp_path, QUICK)


def test_complete_folder_needs_no_bucket(published, caplog):
    access = S3Access(f"http://127.0.0.1:{free_port()}", "us-east-1", "id", "secret")
    with closing(open_source("s3://bucket/models", 1, access)) as source:
        fetch(source, published, QUICK)
    assert "s3://bucket/models/ is unavailable" in caplog.text
    assert "EndpointConnectionError" in caplog.text


def test_complete_folder_does_not_wait_long_for_its_bucket(published, caplog, monkeypatch):
    monkeypatch.setattr("model.weights.s3.READ_TIMEOUT_S", 3600.0)
    monkeypatch.setattr("model.weights.fetch.UPDATE_TIMEOUT_S", 0.1)
    with serve_files(published.parent) as server:
        server.fault = lambda _request, _number: Fault(hold_after_bytes=0)
        access = S3Access(server.url, "us-east-1", "id", "secret")
        with closing(open_source(f"s3://{published.name}", 1, access)) as source:
            fetch(source, published, QUICK)
    assert f"s3://{published.name}/ is unavailable ({MANIFEST}: ReadTimeoutError)" in caplog.text


def test_missing_bucket_of_a_complete_folder_is_an_error(published, access):
    with (
        closing(open_source("s3://no-such-bucket/models", 1, access)) as source,
        pytest.raises(WeightsError, match="NoSuchBucket"),
    ):
        fetch(source, published, QUICK)


def test_server_that_cannot_be_reached_is_asked_again(tmp_path, caplog):
    access = S3Access(f"http://127.0.0.1:{free_port()}", "us-east-1", "id", "secret")
    with (
        closing(open_source("s3://bucket/models", 1, access)) as source,
        pytest.raises(WeightsError, match="EndpointConnectionError"),
    ):
        fetch(source, tmp_path, QUICK)
    assert "trying again" in caplog.text
    assert not (tmp_path / INCOMPLETE).exists()
