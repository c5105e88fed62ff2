"""A model or dataset of the Hugging Face Hub, or of a mirror that HF_ENDPOINT names.

huggingface_hub does the transfer, by its own variables (HF_ENDPOINT, HF_TOKEN,
HF_HUB_DOWNLOAD_TIMEOUT, proxies). What it fetched is compared with what the Hub lists: the SHA-256
of large files, the git blob of small ones.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import AccessError, BadRequestError, UnavailableError
from kubequant_worker.sources.mounted import NOT_FOUND
from kubequant_worker.sources.source import Listing, RemoteFile
from kubequant_worker.sources.space import digest_file, full_disk_explained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from kubequant_worker.file_digest import FileDigest
    from kubequant_worker.sources.source import Origin

FILES_AT_ONCE = 4
TRIES = 2
UNAUTHORIZED = {401, 403}
# A client before 1.0, which the legacy engines need, tells of no bytes: then files count whole.
_TELLS_OF_BYTES = "tqdm_class" in inspect.signature(huggingface_hub.hf_hub_download).parameters
# The transport's base class is httpx's (before 1.0 requests'), under another module name from one
# major version of the hub's client to the next.
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]
TRANSPORT_ERRORS: tuple[type[Exception], ...] = (_HTTP_ERROR, ConnectionError, TimeoutError)


def open_source(origin: Origin) -> HubSource:
    """Return the source for an hf:// address: `hf://owner/name`, for datasets also a path in it."""
    return HubSource(origin)


class HubSource:
    """One repository at one revision."""

    copies: ClassVar[bool] = True

    def __init__(self, origin: Origin) -> None:
        """Read the repository that `origin` names, with the token of its credentials."""
        parts = origin.uri.removeprefix("hf://").split("/")
        self._origin = origin
        self._repository = "/".join(parts[:2])
        self._below = "/".join(parts[2:])
        token = origin.credentials / "HF_TOKEN"
        self._token = token.read_text(encoding="utf-8").strip() if token.is_file() else None
        # The client reads its variable when it is imported; we ask each time.
        self._endpoint = os.environ.get("HF_ENDPOINT") or None

    def listing(self) -> Listing:
        """Resolve the revision to its commit and return the repository's files."""
        api = huggingface_hub.HfApi(endpoint=self._endpoint, token=self._token)
        with self._errors("reading its listing"):
            info: Any = api.repo_info(
                self._repository,
                repo_type=self._origin.kind,
                revision=self._origin.revision,
                files_metadata=True,
            )
        files = tuple(
            RemoteFile(
                path=entry.rfilename,
                size_bytes=entry.size or 0,
                sha256=entry.lfs.sha256 if entry.lfs else None,
                git_blob=None if entry.lfs else entry.blob_id,
            )
            for entry in info.siblings or ()
        )
        if self._below:
            files = tuple(file for file in files if f"{file.path}/".startswith(f"{self._below}/"))
        return Listing(info.sha, files)

    def fetch(
        self,
        files: Sequence[RemoteFile],
        listing: Listing,
        into: Path,
        on_bytes: Callable[[int], None],
    ) -> Sequence[FileDigest]:
        """Download `files`, several at a time, and compare their bytes with the listing."""
        pool = ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="hub")
        try:
            tasks = [
                pool.submit(self._fetch_one, file, listing.revision, into, on_bytes)
                for file in files
            ]
            return [task.result() for task in tasks]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _fetch_one(
        self, file: RemoteFile, commit: str | None, into: Path, on_bytes: Callable[[int], None]
    ) -> FileDigest:
        for attempt in range(TRIES):
            counter = _counter(on_bytes)
            progress = {"tqdm_class": counter} if _TELLS_OF_BYTES else {}
            with self._errors(f"downloading {file.path}"), full_disk_explained(into):
                huggingface_hub.hf_hub_download(
                    self._repository,
                    file.path,
                    repo_type=self._origin.kind,
                    revision=commit,
                    local_dir=into,
                    token=self._token,
                    endpoint=self._endpoint,
                    force_download=attempt > 0,
                    **progress,
                )
            on_bytes(file.size_bytes - counter.counted)
            digest = _checked_digest(into, file)
            if digest is not None:
                return digest
            on_bytes(-file.size_bytes)
        raise UnavailableError(
            f"{self._origin.field}.uri: {file.path} of {self._origin.uri} arrived with other bytes "
            "than the Hub lists, twice.",
            advice="Check the mirror (HF_ENDPOINT) or proxy between here and the Hub.",
        )

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:  # noqa: C901 - one line for each of the hub's answers
        """Turn the hub client's errors into WorkerErrors."""
        uri, field = self._origin.uri, self._origin.field
        missing = NOT_FOUND[self._origin.kind]
        try:
            yield
        except GatedRepoError as error:
            raise AccessError(
                f"{field}.uri: {uri} is gated, and this token was not given access to it.",
                advice="Accept its terms on its page with your account, and name a Secret with "
                "that account's HF_TOKEN in secretRef.",
            ) from error
        except RevisionNotFoundError as error:
            raise AccessError(
                f"{field}.revision: {uri} has no revision {self._origin.revision!r}.",
                reason=missing,
                advice="Name a branch, tag or commit of the repository.",
            ) from error
        except RepositoryNotFoundError as error:
            raise AccessError(
                f"{field}.uri: there is no repository {uri}, or it is private and needs a token.",
                reason=missing,
                advice="Correct the name, or name a Secret with HF_TOKEN in secretRef.",
            ) from error
        except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
            raise self._unavailable(doing, error) from error
        except EntryNotFoundError as error:
            raise AccessError(
                f"{field}.uri: {uri} lists a file that is not there ({doing}).", reason=missing
            ) from error
        except HFValidationError as error:
            raise BadRequestError(f"{field}.uri: {uri} is no repository's name.") from error
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code in UNAUTHORIZED:
                raise AccessError(
                    f"{field}.uri: the Hub refused the token for {uri}.",
                    advice="Put a valid token as HF_TOKEN into the Secret that secretRef names.",
                ) from error
            raise self._unavailable(doing, error) from error
        except TRANSPORT_ERRORS as error:
            raise self._unavailable(doing, error) from error
        except OSError as error:
            # The client reports a wrong length as a plain OSError without a number.
            if error.errno is not None:
                raise
            raise self._unavailable(doing, error) from error

    def _unavailable(self, doing: str, error: Exception) -> UnavailableError:
        response = getattr(error, "response", None)
        status = f"HTTP {response.status_code}" if response is not None else type(error).__name__
        return UnavailableError(
            f"{self._origin.field}.uri: the Hub failed while {doing} of {self._origin.uri} "
            f"({status}).",
            reason=FailureReason.UNAVAILABLE,
            advice="The run is tried again; behind a mirror or proxy, check HF_ENDPOINT.",
        )


def _checked_digest(into: Path, file: RemoteFile) -> FileDigest | None:
    """Return the file's digest, or None where its bytes are not those that the Hub lists."""
    blob = hashlib.sha1(f"blob {file.size_bytes}\0".encode(), usedforsecurity=False)
    also = [blob] if file.git_blob else []
    digest = digest_file(into, file.path, lambda _amount: None, also=also)
    same = digest.size_bytes == file.size_bytes
    if file.sha256:
        same = same and digest.sha256 == file.sha256
    elif file.git_blob:
        same = same and blob.hexdigest() == file.git_blob
    return digest if same else None


def _counter(on_bytes: Callable[[int], None]) -> Any:
    """Return a class for the hub client's progress bar, which tells `on_bytes` instead."""
    bar: Any = importlib.import_module("huggingface_hub.utils").tqdm

    class Counter(bar):  # type: ignore[misc]
        counted = 0

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            Counter.counted += int(n or 0)
            on_bytes(int(n or 0))

    return Counter
