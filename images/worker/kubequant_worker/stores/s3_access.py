"""How we reach S3, for the source and the store alike.

The client, and what botocore's errors mean to a user.

Nothing of a library's message is passed on, since it may quote a request; the error's code and our
own words say enough.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
import botocore.exceptions
import urllib3.exceptions
from botocore.config import Config

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import AccessError, BadRequestError, UnavailableError, WorkerError
from kubequant_worker.stores.backend import ConflictError, GoneError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from mypy_boto3_s3 import S3Client

KEY_FILES = {
    "AWS_ACCESS_KEY_ID": "aws_access_key_id",
    "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key",
    "AWS_SESSION_TOKEN": "aws_session_token",
}
# Any name serves a server of one's own; AWS redirects to the bucket's region.
FALLBACK_REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a request may be silent, and how often botocore tries it, with backoff."""

    connect_seconds: float = 10.0
    read_seconds: float = 60.0
    tries: int = 9


@dataclass(frozen=True, slots=True)
class S3Place:
    """A bucket and prefix as an error's sentence needs them. `prefix` has no '/' at either end."""

    bucket: str
    prefix: str
    endpoint: str
    field: str
    missing: FailureReason = FailureReason.BUCKET_NOT_FOUND

    @classmethod
    def of(
        cls, uri: str, endpoint: str, field: str, missing: FailureReason | None = None
    ) -> S3Place:
        """Read an s3:// address."""
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        return cls(
            bucket, prefix.strip("/"), endpoint, field, missing or FailureReason.BUCKET_NOT_FOUND
        )

    @property
    def where(self) -> str:
        """The bucket and its server, in words."""
        return f"bucket {self.bucket!r} at {self.endpoint or 'AWS'}"

    def key(self, name: str) -> str:
        """Return the key of `name` below the prefix."""
        return f"{self.prefix}/{name}" if self.prefix else name


def entity_tag(answer: Mapping[str, Any]) -> str:
    """Return an answer's ETag as HTTP writes it, in quotes.

    Ceph RGW leaves them out of the answer that completes an upload.
    """
    tag = str(answer["ETag"])
    return tag if tag.startswith("W/") else '"' + tag.strip('"') + '"'


class BrokenBodyError(UnavailableError):
    """An answer began and broke off; botocore retries requests, not bodies, so its reader must."""


@contextmanager
def broken_bodies(place: S3Place, doing: str) -> Iterator[None]:
    """As `s3_errors`, for reading an answer's body: trouble is a BrokenBodyError."""
    try:
        with s3_errors(place, doing):
            yield
    except UnavailableError as error:
        raise BrokenBodyError(error.message, reason=error.reason, advice=error.advice) from error


class SpoiledError(UnavailableError):
    """The store received other bytes than were sent; sending them again helps."""


class NotImplementedByStoreError(AccessError):
    """The store answers 501: it does not know the operation or one of its conditions."""


def connect(
    *,
    endpoint: str,
    region: str,
    credentials: Path | None,
    connections: int = 12,
    patience: Patience | None = None,
    sign_payload: bool | None = None,
) -> S3Client:
    """Return a thread-safe client with the keys of `credentials`, or of the usual chain.

    `sign_payload` is botocore's setting: False sends parts under their own signed checksum, without
    a second hash.
    """
    keys: Any = _keys(credentials)
    patience = patience or Patience()
    s3_options: Any = {"addressing_style": "path" if endpoint else "auto"}
    if sign_payload is not None:
        s3_options["payload_signing_enabled"] = sign_payload
    session = boto3.session.Session(**keys)
    return session.client(
        "s3",
        endpoint_url=endpoint or None,
        region_name=region or session.region_name or FALLBACK_REGION,
        config=Config(
            signature_version="s3v4",
            s3=s3_options,
            max_pool_connections=connections,
            connect_timeout=patience.connect_seconds,
            read_timeout=patience.read_seconds,
            retries={"mode": "standard", "total_max_attempts": patience.tries},
            tcp_keepalive=True,
            # We name the checksums ourselves, and ask for them where we compare them.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _keys(credentials: Path | None) -> dict[str, str]:
    """Read the role's key files.

    A folder with only one half of a pair is a mistake worth a sentence.
    """
    found: dict[str, str] = {}
    for file, argument in KEY_FILES.items():
        path = credentials / file if credentials else None
        if path is not None and path.is_file():
            found[argument] = path.read_text(encoding="utf-8").strip()
    if len(found.keys() & {"aws_access_key_id", "aws_secret_access_key"}) == 1:
        role = credentials.name if credentials else ""
        raise AccessError(
            f"The credentials for {role} hold only one of AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY.",
            advice="Put both keys into the Secret that secretRef names.",
        )
    return found if "aws_access_key_id" in found else {}


WRONG_KEYS = {
    "InvalidAccessKeyId": "the access key id is not known there",
    "SignatureDoesNotMatch": "the secret access key does not belong to the access key id",
    "ExpiredToken": "the session token has expired",
    "ExpiredTokenException": "the session token has expired",
    "TokenRefreshRequired": "the session token has expired",
    "InvalidToken": "the session token is not valid",
    "InvalidClientTokenId": "the session token is not valid",
    "RequestTimeTooSkewed": "this machine's clock is more than 15 minutes off",
}
NO_RIGHTS = {
    "AccessDenied",
    "403",
    "Forbidden",
    "AllAccessDisabled",
    "AccountProblem",
    "UnauthorizedAccess",
}
NOT_FOUND = {"NoSuchKey", "404", "NotFound"}
WRONG_REGION = {
    "PermanentRedirect",
    "301",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
}
CONFLICTS = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409", "OperationAborted"}
SPOILED = {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
STORE_FULL = {
    "QuotaExceeded",
    "XMinioStorageFull",
    "InsufficientStorage",
    "507",
    "QuotaExceededException",
}
HTTP_NOT_IMPLEMENTED = 501
HTTP_SERVER_ERROR = 500

WORLD_ERRORS = (
    botocore.exceptions.EndpointConnectionError,
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.ConnectionError,
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.ResponseStreamingError,
    botocore.exceptions.FlexibleChecksumError,
    urllib3.exceptions.HTTPError,
    ConnectionError,
    TimeoutError,
)
KEY_ERRORS = (
    botocore.exceptions.NoCredentialsError,
    botocore.exceptions.PartialCredentialsError,
    botocore.exceptions.CredentialRetrievalError,
    botocore.exceptions.ProfileNotFound,
    botocore.exceptions.NoAuthTokenError,
    botocore.exceptions.TokenRetrievalError,
    botocore.exceptions.SSOError,
)


@contextmanager
def s3_errors(place: S3Place, doing: str) -> Iterator[None]:
    """Turn botocore's errors into WorkerErrors that name the bucket, the field and the way out.

    `doing` completes "while ...". Conditions that do not hold become ConflictError, an aborted
    upload GoneError and a 501 NotImplementedByStoreError: these are answers, not trouble.
    """
    try:
        yield
    except botocore.exceptions.ClientError as error:
        raise _meaning(place, doing, error) from error
    except KEY_ERRORS as error:
        raise AccessError(
            f"{place.field}: no credentials for {place.where} were found.",
            advice="Name a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in secretRef; "
            "on a laptop the AWS profile or those variables serve.",
        ) from error
    except botocore.exceptions.SSLError as error:
        raise AccessError(
            f"{place.field}: no trusted TLS connection to {place.where} could be made.",
            advice="Check the endpoint, and name the certificate authority in AWS_CA_BUNDLE.",
        ) from error
    except WORLD_ERRORS as error:
        raise UnavailableError(
            f"{place.field}: {place.where} could not be reached or fell silent while {doing} "
            f"({type(error).__name__}).",
            advice="Check the endpoint and the network; the run is tried again.",
        ) from error
    except botocore.exceptions.BotoCoreError as error:
        raise BadRequestError(
            f"{place.field}: the request to {place.where} could not be made "
            f"({type(error).__name__}).",
            advice="Check the bucket's name, the endpoint and the region.",
        ) from error


def _meaning(place: S3Place, doing: str, error: botocore.exceptions.ClientError) -> Exception:  # noqa: C901, PLR0911 - a table of answers
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in CONFLICTS:
        return ConflictError(code)
    if code == "NoSuchUpload":
        return GoneError(code)
    if status == HTTP_NOT_IMPLEMENTED or code == "NotImplemented":
        return NotImplementedByStoreError(
            f"{place.field}: {place.where} does not know how to do this: {doing}."
        )
    if code in SPOILED:
        return SpoiledError(
            f"{place.field}: what {place.where} received was not what was sent, "
            f"while {doing} ({code}).",
            advice="Look at the network and what stands between here and the store.",
        )
    if code == "NoSuchBucket":
        return AccessError(
            f"{place.field}: there is no {place.where}.",
            reason=FailureReason.BUCKET_NOT_FOUND,
            advice="Create the bucket, or correct the address, the endpoint or the region.",
        )
    if code in NOT_FOUND:
        return AccessError(
            f"{place.field}: there is nothing at s3://{place.bucket}/{place.prefix} ({doing}).",
            reason=place.missing,
            advice="Correct the address.",
        )
    if code in WRONG_KEYS:
        return AccessError(
            f"{place.field}: {place.where} refused the credentials: {WRONG_KEYS[code]}.",
            advice="Correct the Secret that secretRef names.",
        )
    if code in NO_RIGHTS or code.startswith("KMS."):
        return AccessError(
            f"{place.field}: the credentials are not allowed to do this in {place.where}: "
            f"{doing} ({code}).",
            advice="Reading needs s3:GetObject and s3:ListBucket; publishing also s3:PutObject and "
            "s3:AbortMultipartUpload, and the right to use the KMS key where one is named.",
        )
    if code in WRONG_REGION:
        return AccessError(
            f"{place.field}: {place.where} is in another region than the one asked for ({code}).",
            advice="Name the bucket's region in s3.region.",
        )
    if code in STORE_FULL:
        return UnavailableError(
            f"{place.field}: {place.where} is full ({code}).",
            reason=FailureReason.DISK_FULL,
            advice="Free space in the store or raise its quota.",
        )
    return _other(place, doing, code, status)


def _other(place: S3Place, doing: str, code: str, status: int) -> WorkerError:
    if status < HTTP_SERVER_ERROR and status and code not in {"RequestTimeout", "SlowDown"}:
        return AccessError(
            f"{place.field}: {place.where} refused the request while {doing}: "
            f"{code} (HTTP {status}).",
            advice="Check the address, the endpoint and what the bucket's policy allows.",
        )
    return UnavailableError(
        f"{place.field}: {place.where} kept failing while {doing}: {code} (HTTP {status}).",
        advice="The run is tried again; look at the store if that does not help.",
    )
