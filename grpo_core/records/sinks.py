"""Where an attached trainer's parcels go: a file of ours, or a server that writes into its own."""

from __future__ import annotations

import contextlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from grpo_core.errors import StoreBusy, StoreError, StudioError
from grpo_core.records.intake import Intake
from grpo_core.records.parcels import Parcel, pack, read, unzip
from grpo_core.store import Store

INGEST = "/studio/ingest"
TIMEOUT_SECONDS = 10.0
MAX_ANSWER = 2000  # bytes of an answer that are read


class Away(Exception):
    """The parcel can be sent later. after: seconds, if the other side said so."""

    def __init__(self, reason: str, after: float = 0.0):
        super().__init__(reason)
        self.after = after


class Refused(Exception):
    """The parcel will never be taken."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST becomes a GET, whose answer would pass for a receipt."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


class Sink(Protocol):
    """Takes parcels in order. `send` and `resend` raise Away or Refused."""

    name: str  # for people, and what a spool belongs to

    def send(self, parcel: Parcel) -> None: ...

    def resend(self, packed: bytes) -> None: ...

    def close(self) -> None: ...


class FileSink:
    """Writes into an SQLite file, which it holds while the run is live."""

    def __init__(self, path: str):
        """Raises StoreError for a file that can never be written."""
        self.name = f"db {Path(path).absolute()}"
        self._path = path
        self._intake: Intake | None = None
        with contextlib.suppress(StoreBusy):  # tried again with every parcel
            self._open()

    def _open(self) -> Intake:
        if self._intake is None:
            self._intake = Intake(Store(self._path))
        return self._intake

    def send(self, parcel: Parcel) -> None:
        try:
            self._open().take(parcel)
        except StoreError as error:  # locked, full, away: all of them may pass
            raise Away(str(error)) from None
        except StudioError as error:
            raise Refused(str(error)) from None

    def resend(self, packed: bytes) -> None:
        try:
            parcel = read(unzip(packed))
        except StudioError as error:
            raise Refused(str(error)) from None
        self.send(parcel)

    def close(self) -> None:
        if self._intake is not None:
            self._intake.close()


class ServerSink:
    """Posts to a running server that was started with --ingest-token."""

    def __init__(self, url: str, token: str):
        """url: of the page, with a path if a proxy serves it under one. Raises StudioError."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise StudioError(
                f"url = {url!r}: this is no address of a page. Write it as the server printed it, "
                "such as http://127.0.0.1:7860."
            )
        if not token:
            raise StudioError(
                "token is empty. Give the token with which the server was started: "
                "python app.py --ingest-token TOKEN."
            )
        if not (token.isascii() and token.isprintable()):
            raise StudioError("token: use printable ASCII characters only.")
        page = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self.name, self._address = f"url {page}", f"{page}{INGEST}"
        self._token = token

    def send(self, parcel: Parcel) -> None:
        self.resend(pack(parcel))

    def resend(self, packed: bytes) -> None:
        headers = {
            "Authorization": f"Bearer {self._token}",
            "Content-Type": "application/json",
            "Content-Encoding": "gzip",
        }
        request = urllib.request.Request(self._address, packed, headers, method="POST")
        try:
            with _OPENER.open(request, timeout=TIMEOUT_SECONDS) as answer:
                said = answer.read(MAX_ANSWER)
        except urllib.error.HTTPError as error:
            raise self._problem(error) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise Away(f"{self._address} does not answer: {reason}") from None
        if b'"run_id"' not in said:  # the login page of a proxy, for example
            raise Away(f"{self._address} is answered by another program than GRPO Studio")

    def _problem(self, error: urllib.error.HTTPError) -> Away | Refused:
        """Only a body that is wrong stays wrong; a token or a server can be corrected."""
        try:
            said = error.read(MAX_ANSWER).decode("utf-8", "replace").strip()
        except (OSError, http.client.HTTPException):
            said = ""
        text = f"{self._address} answers {error.code}: {said or error.reason}"
        if error.code in (400, 413, 422):
            return Refused(text)
        after = error.headers.get("Retry-After", "")
        return Away(text, float(after) if after.isdigit() else 0.0)

    def close(self) -> None:
        pass
