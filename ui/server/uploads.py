"""Passes uploads on to Gradio while they come: few files, complete, and not too much in an hour."""

from __future__ import annotations

import time
from collections import OrderedDict, deque

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.formparsers import MultiPartException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.server.bodies import announced, parts, too_large
from ui.server.guard import Refusal, read_headers

MIB = 1 << 20
MAX_BYTES = 201 * MIB  # of a form; Gradio refuses a file above 200 MB
MAX_FILES = 16  # of a form
HOUR_BYTES = 1024 * MIB  # that one visitor may upload in an hour
HOUR = 3600.0
MAX_VISITORS = 10_000  # that are remembered


class Uploads:
    """Reads a form along with Gradio.

    Gradio would keep the files of a form that is cut off, and of parts that it does not ask for.
    """

    def __init__(self, app: ASGIApp):
        self.app = app
        self._sizes: OrderedDict[str, deque[tuple[float, int]]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send, visitor: str) -> None:
        """Raises Refusal."""
        if announced(scope) > MAX_BYTES:
            raise too_large(MAX_BYTES)
        form, blocks = _Form(scope), parts(receive)
        refusal: Refusal | None = None

        async def read() -> Message:
            nonlocal refusal
            try:
                block = await anext(blocks, b"")
                form.read(block)
                self._count(visitor, len(block))
            except Refusal as error:
                refusal = error
                # Gradio removes the files of a form that raises this.
                raise MultiPartException(error.text) from None
            return {"type": "http.request", "body": block, "more_body": bool(block)}

        async def send_unless_refused(message: Message) -> None:
            if refusal is None:
                await send(message)

        await self.app(scope, read, send_unless_refused)
        if refusal is not None:
            raise refusal

    def _count(self, visitor: str, num_bytes: int) -> None:
        """Raises Refusal beyond what one visitor may upload in an hour."""
        now = time.monotonic()
        sizes = self._sizes.setdefault(visitor, deque())
        self._sizes.move_to_end(visitor)
        while sizes and now - sizes[0][0] > HOUR:
            sizes.popleft()
        if sizes and now - sizes[-1][0] < 1.0:  # one entry a second, not one a block
            num_bytes += sizes.pop()[1]
        sizes.append((now, num_bytes))
        if len(self._sizes) > MAX_VISITORS:
            self._sizes.popitem(last=False)
        if sum(size for _, size in sizes) > HOUR_BYTES:
            text = f"A visitor may upload {HOUR_BYTES // MIB:,} MiB an hour. Try again later."
            raise Refusal(429, text, 600)


class _Form:
    """Checks a form while it is read."""

    def __init__(self, scope: Scope):
        """Raises Refusal."""
        kind, options = parse_options_header(read_headers(scope).get("content-type", ""))
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            raise Refusal(400, "An upload is a form: multipart/form-data with a boundary.")
        self._num_bytes = self._num_files = 0
        self._name, self._value = b"", b""  # of the header that is read
        self._is_complete = self._is_file = False
        callbacks = {
            "on_part_begin": self._begin,
            "on_header_field": self._add_name,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_end": self._end,
        }
        self._parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]

    def read(self, block: bytes) -> None:
        """The next block of the form; b"" at its end. Raises Refusal."""
        self._num_bytes += len(block)
        if self._num_bytes > MAX_BYTES:
            raise too_large(MAX_BYTES)
        try:
            self._parser.write(block)
        except FormParserError:
            raise Refusal(400, "The form cannot be read.") from None
        if not block and not self._is_complete:
            raise Refusal(400, "The form is cut off.")

    def _begin(self) -> None:
        self._num_files += 1
        self._is_file = False
        if self._num_files > MAX_FILES:
            raise Refusal(413, f"Upload at most {MAX_FILES} files at once.")

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            self._is_file = options.get(b"name") == b"files" and b"filename" in options
        self._name = self._value = b""

    def _end_headers(self) -> None:
        if not self._is_file:
            raise Refusal(400, "Every part of the form must be a file called “files”.")

    def _end(self) -> None:
        self._is_complete = True
