"""A store that speaks S3, with users whose credentials it checks."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.storage.s3_server import s3_server

BUCKET = "bucket"
REGION = "us-east-1"


@dataclass(frozen=True)
class Store:
    """A running server with one empty bucket."""

    endpoint: str
    keys: dict[str, dict[str, str]]
    """Of each user, the credentials as `~/.aws/credentials` has them."""

    def aws(self, user: str) -> dict[str, dict[str, str]]:
        """What stands in the two files of that user's `~/.aws`."""
        return {"credentials": self.keys[user], "config": {"region": REGION, "endpoint_url": self.endpoint}}


@contextmanager
def s3_store(*users: str) -> Iterator[Store]:
    """A store with these users; each may do everything, and nobody else anything."""
    import boto3

    with s3_server() as port:
        endpoint = f"http://127.0.0.1:{port}"
        anyone = {
            "endpoint_url": endpoint,
            "region_name": REGION,
            "aws_access_key_id": "anyone",
            "aws_secret_access_key": "at all",
        }
        boto3.client("s3", **anyone).create_bucket(Bucket=BUCKET)
        iam = boto3.client("iam", **anyone)
        policy = {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}}
        keys = {}
        for user in users:
            iam.create_user(UserName=user)
            iam.put_user_policy(UserName=user, PolicyName="store", PolicyDocument=json.dumps(policy))
            key = iam.create_access_key(UserName=user)["AccessKey"]
            keys[user] = {
                "aws_access_key_id": key["AccessKeyId"],
                "aws_secret_access_key": key["SecretAccessKey"],
            }
        # From now on moto checks who asks.
        check = urllib.request.Request(f"{endpoint}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
        urllib.request.urlopen(check).close()
        yield Store(endpoint, keys)
