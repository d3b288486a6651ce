"""The policy of the service's user, enforced by an S3 server: enough for the storage, and for no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from jobs.settings import SharedSettings
from jobs.storage.base import open_storage
from tests.servers import run_s3_server

POLICY = Path(__file__).parents[2] / "docker" / "s3-policy.json"
SETUP_REQUESTS = 4  # after these the server asks who is calling


@pytest.fixture
def user(tmp_path, monkeypatch):
    """What a client of the service's user needs, on a server with a bucket and this policy."""
    monkeypatch.setenv("INITIAL_NO_AUTH_ACTION_COUNT", str(SETUP_REQUESTS))
    with run_s3_server(tmp_path / "log") as server:
        given: dict[str, Any] = {"endpoint_url": server.endpoint_url, "region_name": server.region}
        root = given | {"aws_access_key_id": "root", "aws_secret_access_key": "root"}
        boto3.client("s3", **root).create_bucket(Bucket="longcat")
        iam = boto3.client("iam", **root)
        iam.create_user(UserName="service")
        iam.put_user_policy(UserName="service", PolicyName="longcat", PolicyDocument=POLICY.read_text())
        key = iam.create_access_key(UserName="service")["AccessKey"]
        yield given | {
            "aws_access_key_id": key["AccessKeyId"],
            "aws_secret_access_key": key["SecretAccessKey"],
        }


def test_policy_covers_the_storage_and_nothing_beyond_its_bucket(user, tmp_path):
    storage = open_storage(
        SharedSettings(
            storage="s3://longcat/videos",
            s3_endpoint_url=user["endpoint_url"],
            s3_access_key_id=user["aws_access_key_id"],
            s3_secret_access_key=user["aws_secret_access_key"],
        )
    )
    (tmp_path / "video").write_bytes(b"x" * (20 << 20))  # several parts
    storage.put("jobs/a/1/video.mp4", tmp_path / "video", "video/mp4")
    assert storage.size_bytes("jobs/a/1/video.mp4") == 20 << 20
    storage.fetch("jobs/a/1/video.mp4", tmp_path / "fetched")
    storage.delete_prefix("jobs/a/")
    assert list(storage.keys("jobs/a/")) == []
    client = boto3.client("s3", **user)
    for refused in (
        lambda: client.create_bucket(Bucket="other"),
        lambda: client.delete_bucket(Bucket="longcat"),
        lambda: client.put_bucket_policy(Bucket="longcat", Policy="{}"),
        client.list_buckets,
        boto3.client("iam", **user).list_users,
    ):
        with pytest.raises(ClientError, match=r"AccessDenied|not authorized"):
            refused()
