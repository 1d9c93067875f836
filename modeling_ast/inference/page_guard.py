"""What protects a page from its visitors: limits that Gradio has no options for, and folders that never stay."""

import asyncio
import os
import shutil
import stat
import tempfile
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

try:
    import fcntl
except ImportError:  # Windows has other locks
    fcntl = None

_PREFIX, _CLAIM_NAME = "demo_app_", ".demo_app_lock"
# The page's own requests that change something, and bytes that bodies other than uploads may have.
_POSTS = ("/upload", "/queue/join", "/cancel", "/run/predict", "/reset", "/login")
_MAX_BODY = 2**20
# In which an upload must end, however slowly it comes: who sends a byte a second keeps others from uploading.
_MIN_BYTES_PER_SECOND, _MIN_UPLOAD_SECONDS = 10_000, 60

Scope = Message = MutableMapping[str, Any]
Receive, Send = Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]


@contextmanager
def working_folder() -> Iterator[Path]:
    """A new folder among the system's temporary ones, there meanwhile; those of pages that were killed go first."""
    root = Path(tempfile.gettempdir())
    for folder in root.glob(f"{_PREFIX}*") if fcntl else ():
        with suppress(OSError):  # another page has it, or it is no page's
            status = folder.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
                with _claimed(folder):
                    shutil.rmtree(folder)
    folder = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}"))
    (folder / _CLAIM_NAME).touch()
    try:
        with _claimed(folder) if fcntl else nullcontext():
            folder = folder.rename(root / folder.name[1:])  # others see it once it is claimed
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """While it is entered no other process can enter it for the folder; the system ends that with the process.

    Raises:
        OSError: Another process has entered it, or the folder is none that `working_folder` made.
    """
    descriptor = os.open(folder / _CLAIM_NAME, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


class PageGuard:
    """ASGI middleware that refuses what Gradio's own options let pass.

    Refused are what pages of other origins send or ask for, requests that the page itself never makes, the fetching of
    URLs for visitors, and bodies beyond the limits. Where uploads become too many the oldest are deleted.

    Args:
        app: Behind it.
        uploads: Folder of the uploads.
        max_bytes: Of an upload.
        max_total_bytes: Of all uploads.
        hosts: The only names that the page can be opened by; `None` means any. Names of other machines that lead here
            would make this page one of theirs (DNS rebinding).

    Source: origins are told apart as by CrossOriginProtection of Go's net/http.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        uploads: Path,
        max_bytes: int,
        max_total_bytes: int,
        hosts: Collection[str] | None = None,
    ):
        self.app, self.uploads, self.max_bytes, self.max_total_bytes = app, uploads, max_bytes, max_total_bytes
        self.hosts = hosts
        self.arriving = 0  # bytes of uploads that have begun

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if refusal := self._refusal(scope["method"], scope["path"], headers):
            return await _answer(send, *refusal)
        if scope["method"] != "POST" or not scope["path"].endswith("/upload"):
            return await self.app(scope, receive, send)
        length = int(headers.get("content-length", 0))
        self.arriving += length
        try:
            await asyncio.to_thread(self._make_room)
            async with asyncio.timeout(_MIN_UPLOAD_SECONDS + length / _MIN_BYTES_PER_SECOND):
                await self.app(scope, receive, send)
        except TimeoutError:
            await _answer(send, 408, "The upload takes too long.")
        finally:
            self.arriving -= length

    def _refusal(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """Status and sentence for what is refused."""
        if self.hosts is not None and _hostname(headers) not in self.hosts:
            return 403, "This page is opened as localhost, or by any name where it has a password."
        is_safe = method in ("GET", "HEAD", "OPTIONS")
        if site := headers.get("sec-fetch-site"):
            is_foreign = site not in ("same-origin", "none")
            is_foreign &= not is_safe or headers.get("sec-fetch-mode") == "cors"  # others may link to the page
        else:  # a browser that talks to another machine without TLS
            origin = headers.get("origin")
            is_foreign = origin is not None and urlsplit(origin).netloc != headers.get("host")
        if is_foreign:
            return 403, "Other pages cannot use this one."
        if "/file=http" in path or "/file/http" in path:
            return 403, "This page fetches nothing from elsewhere."
        if is_safe:
            return None
        if method != "POST" or not path.rstrip("/").endswith(_POSTS):
            return 403, "This page has no use for that."
        if "transfer-encoding" in headers:
            return 411, "Expected the length of the request in its headers."
        is_upload = path.endswith("/upload")
        length, most = int(headers.get("content-length", 0)), self.max_bytes + _MAX_BODY if is_upload else _MAX_BODY
        if length > most:
            return 413, f"Expected at most {most:,} bytes, got {length:,}."
        if is_upload and self.arriving + length > self.max_total_bytes + _MAX_BODY:
            return 503, "Others are uploading as much as this page takes. Try again in a minute."
        return None

    def _make_room(self) -> None:
        """Delete the oldest uploads where there are too many, with those that arrive."""
        found = []
        for path in self.uploads.rglob("*"):
            with suppress(OSError):  # gone meanwhile
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    found.append((status.st_mtime, status.st_size, path))
        total = self.arriving + sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.max_total_bytes + _MAX_BODY:
                break
            path.unlink(missing_ok=True)
            total -= size


def _hostname(headers: Mapping[str, str]) -> str | None:
    """What the browser calls this machine, without the port."""
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname
    except ValueError:  # of brackets that are no address
        return None


async def _answer(send: Send, status: int, sentence: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": sentence.encode()})
