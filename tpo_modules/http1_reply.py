"""Reading an HTTP/1.1 reply as it arrives: of a stated length, in chunks, or up to the connection's end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_MOST_HEAD = 65_536


class BrokenReplyError(ConnectionError):
    """The connection broke before the reply was complete, or what came is no HTTP."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP reply, complete.

    Attributes:
        status: The status code.
        headers: Header values by name in lower case.
        content: The body, decoded from chunks.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes


class ReplyReader:
    """Puts one reply together from what arrives.

    Attributes:
        keep_alive: Whether the connection may be used again, once the reply is complete.
    """

    def __init__(self) -> None:
        self.keep_alive = False
        self._data = bytearray()
        self._status = 0
        self._headers: Mapping[str, str] = MappingProxyType({})

    @property
    def started(self) -> bool:
        """Whether anything has arrived."""
        return bool(self._data) or self._status > 0

    def feed(self, data: bytes) -> Reply | None:
        """Take what came; return the reply once it is complete."""
        self._data += data
        while self._status < 200:
            if not self._read_head():
                return None
        length = self._headers.get("content-length")
        if self._status in (204, 304):
            return self._reply(b"", 0)
        if "chunked" in self._headers.get("transfer-encoding", ""):
            chunks = _dechunk(self._data)
            return self._reply(*chunks) if chunks is not None else None
        if length is None:
            return None  # it ends where the connection does
        if not length.isdecimal():
            raise BrokenReplyError(f"expected a number as content-length, got {length!r}")
        if len(self._data) < int(length):
            return None
        return self._reply(bytes(self._data[: int(length)]), int(length))

    def at_end(self) -> Reply | None:
        """Return the reply that the end of the connection completes, if it is one of that kind."""
        if self._status < 200 or {"content-length", "transfer-encoding"} & self._headers.keys():
            return None
        return Reply(self._status, self._headers, bytes(self._data))

    def _reply(self, content: bytes, used: int) -> Reply:
        closes = self._headers.get("connection", "").lower() == "close"
        self.keep_alive = self._http11 and not closes and used == len(self._data)
        return Reply(self._status, self._headers, content)

    def _read_head(self) -> bool:
        raw, found, rest = self._data.partition(b"\r\n\r\n")
        if not found:
            if len(self._data) > _MOST_HEAD or not b"HTTP/".startswith(self._data[:5]):
                raise BrokenReplyError(f"expected HTTP, got {bytes(self._data[:40])!r}")
            return False
        first, *lines = raw.decode("latin-1").split("\r\n")
        version, _, after = first.partition(" ")
        if not version.startswith("HTTP/1.") or not after[:3].isdecimal():
            raise BrokenReplyError(f"expected HTTP/1.1, got {first[:40]!r}")
        self._http11 = version == "HTTP/1.1"
        self._status = int(after[:3])
        pairs = (line.partition(":") for line in lines)
        self._headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        self._data = rest
        return True


def _dechunk(data: bytearray) -> tuple[bytes, int] | None:
    """Decode a chunked body; None while it is incomplete."""
    parts: list[bytes] = []
    start = 0
    while True:
        end = data.find(b"\r\n", start)
        if end < 0:
            return None
        try:
            size = int(data[start:end].split(b";")[0], 16)
        except ValueError:
            raise BrokenReplyError("expected the size of a chunk") from None
        start = end + 2
        if size == 0:
            last = end if data.startswith(b"\r\n", start) else data.find(b"\r\n\r\n", start)
            complete = len(data) >= start + 2 and last >= 0
            return (b"".join(parts), last + 4) if complete else None
        if len(data) < start + size + 2:
            return None
        parts.append(bytes(data[start : start + size]))
        start += size + 2
