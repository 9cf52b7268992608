"""One HTTP/1.1 response, read from bytes as they arrive: for the daemons' small clients of local sockets."""

from typing import Final

import httptools

from shared.errors import ProtocolError, UnavailableError

MAX_HEAD: Final = 64 * 1024
"""Status line, headers, chunk framing and trailers. Those that we ask send a few hundred bytes."""


class HttpResponse:
    """The parser of one response.

    Feed it until `complete`, and say `ended` when the peer ends its side. `code` stands before `.head`,
    `.malformed` and `.cut` in what it raises.
    """

    def __init__(self, code: str) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.has_head = False
        self.complete = False
        self._code = code
        self._pieces: list[bytes] = []
        self._fed = 0
        self._body = 0
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the peer, and return those of the body in them.

        Raises `ProtocolError`: `<code>.malformed`, `<code>.head`.
        """
        self._fed += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise ProtocolError(f"{self._code}.malformed", "the answer is no http response") from error
        # Framing may be as large as the body, which its reader bounds.
        if self._fed - self._body > MAX_HEAD + self._body:
            raise ProtocolError(f"{self._code}.head", f"the answer's head is larger than {MAX_HEAD} bytes")
        found = b"".join(self._pieces)
        self._pieces.clear()
        return found

    def ended(self) -> None:
        """Note that the peer ended its side. Raises `UnavailableError("<code>.cut")` for half an answer."""
        bounded = "content-length" in self.headers or "transfer-encoding" in self.headers
        if not self.complete and (bounded or not self.has_head):
            raise UnavailableError(f"{self._code}.cut", "the peer ended its side in the middle of an answer")
        self.complete = True

    # From the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep one header."""
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Note the end of the head. One of 1xx precedes the answer's own."""
        self.status = self._parser.get_status_code()
        self.has_head = self.status >= 200

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body."""
        self._body += len(body)
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        """Note the end."""
        self.complete = self.has_head
