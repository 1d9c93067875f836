"""Archives from the network: fetched with continuation, checked, and unpacked so that nothing lands elsewhere."""

import hashlib
import http.client
import os
import re
import shutil
import stat
import tarfile
import tempfile
import unicodedata
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from tqdm.auto import tqdm

from modeling_ast.data.labels import DataError, plain

CHUNK = 1 << 20  # bytes
TIMEOUT = 60  # seconds without a byte
MAX_DOWNLOAD = 16 << 30  # bytes; the largest archive of `prepare.py` has 2.4 GB, and a server may send without end
# Times the size of an archive that may come out of it. Sound packs to a half or a third, and a bomb to a thousandth.
MAX_GROWTH = 20
MIN_LIMIT = 64 << 20  # bytes that may come out of any archive
BLOCK = 4096  # bytes of a disk that each file takes at least, also an empty one
MAX_HEADER = 1 << 20  # bytes of a name or of other settings in a TAR file, which are read into memory


@dataclass(frozen=True)
class Archive:
    """An archive in the network.

    Args:
        name: What the file is called here.
        url: Where it is.
        sha256: Of the file; `None` where the server packs it anew now and then, so that only its own checksums hold.
        num_clips: Sound files that it must hold.
    """

    name: str
    url: str
    sha256: str | None
    num_clips: int


def fetch(archive: Archive, folder: Path) -> Path:
    """Fetch an archive, or take the one that is there. An interrupted download continues where it ended.

    Args:
        archive: What to fetch.
        folder: Where to keep it.

    Returns:
        Path of the archive, whose checksum, if known, is right.

    Raises:
        DataError: The server cannot be reached, ends too early, or sends another file than expected.
    """
    path = folder / archive.name
    part = path.with_name(path.name + ".part")
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _download(archive.url, part)
        except (OSError, http.client.HTTPException) as error:
            raise DataError(
                f"{shown_address(archive.url)}: cannot be fetched ({error}). Run the command again to continue, or "
                "fetch it by other means and name it with --source."
            ) from error
        _check(part, archive.sha256)
        os.replace(part, path)
    return path


def shown_address(url: str) -> str:
    """An address for messages: without user, password and query, where secrets stand, or what a terminal obeys."""
    parts = re.fullmatch(r"(\w+://)(?:[^/?#]*@)?([^/?#@:]*|\[[^\]/?#@]*\])(:\d*)?(/[^?#]*)?([?#].*)?", url, re.DOTALL)
    # What is no address is not told apart either: a password may hold a slash.
    shown = "".join(filter(None, parts.groups()[:4])) if parts else f"{url.partition('://')[0]}://..."
    return plain(" ".join(shown.split()))


def _download(url: str, part: Path) -> None:
    """Append to `part` what is missing, or start again where the server cannot continue."""
    start = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if _total(error) == start:  # all of it was there
            return
        part.unlink()
        return _download(url, part)
    with response:
        range_start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if start and not (range_start and int(range_start[1]) == start):  # sent from its beginning
            start = 0
        total = _total(response) if range_start else _number(response.headers.get("Content-Length", ""))
        if (total or 0) > MAX_DOWNLOAD:
            raise ConnectionError(f"the server would send {total:,} bytes, more than {MAX_DOWNLOAD:,}")
        size = _copy(response, part, start, total)
    if total is not None and size < total:
        raise ConnectionError(f"the connection ended after {size:,} of {total:,} bytes")


def _total(response) -> int | None:
    """Size of the whole file, from the end of `Content-Range: bytes 5-9/10`."""
    return _number(response.headers.get("Content-Range", "").rpartition("/")[2])


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def _copy(response, part: Path, start: int, total: int | None) -> int:
    bar = tqdm(desc=f"Fetching {part.stem}", initial=start, total=total, unit="B", unit_scale=True)
    with bar, open(part, "ab" if start else "wb") as file:
        while chunk := response.read(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
            if file.tell() > MAX_DOWNLOAD:
                raise ConnectionError(f"the server sent more than {MAX_DOWNLOAD:,} bytes")
        return file.tell()


def _check(path: Path, sha256: str | None) -> None:
    if sha256 is None:
        return
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        path.unlink()
        raise DataError(
            f"{path.with_suffix('').name}: expected the SHA-256 {sha256}, got {found}. What was fetched is deleted; "
            "run the command again."
        )


def unpack(path: Path, folder: Path) -> Path:
    """Unpack a ZIP or TAR file, or take the folder that is there: a folder that is there is complete.

    Args:
        path: The archive. The checksums in it are checked.
        folder: Where to; nothing is written elsewhere, and no more than `MAX_GROWTH` times the archive or than the
            disk has room for.

    Raises:
        DataError: No such archive, a broken one, one that holds too much, or one with a member outside of `folder`, a
            link or a device, the name of another member, or a name with control characters.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        if zipfile.is_zipfile(path):
            _unpack_zip(path, unfinished)
        else:
            _unpack_tar(path, unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except DataError:
        raise
    except Exception as error:  # zip, tar and each way of packing raise their own, and the disk its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: a broken archive, or no room to unpack it ({reason}).") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # of an interruption; the finished folder has another name
    return folder


def _unpack_zip(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = ((each, each.filename, each.file_size, _zip_kind(each)) for each in archive.infolist())
        for member in tqdm(list(_checked(path, folder, members)), desc=f"Unpacking {path.name}"):
            archive.extract(member, folder)  # compares the CRC, and reads no more than the size that was checked


def _zip_kind(member: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where another system than Unix packed
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "other"
    return "folder" if member.is_dir() else "file"


def _unpack_tar(path: Path, folder: Path) -> None:
    try:
        archive = tarfile.open(path, tarinfo=_Member)
    except tarfile.TarError as error:
        raise DataError(f"{path}: expected a ZIP or TAR file.") from error
    with archive:
        members = ((each, each.name, each.size, _tar_kind(each)) for each in archive)
        for member in tqdm(_checked(path, folder, members), desc=f"Unpacking {path.name}"):
            archive.extract(member, folder, filter="data")


def _tar_kind(member: tarfile.TarInfo) -> str:
    return "folder" if member.isdir() else "file" if member.isfile() else "other"


class _Member(tarfile.TarInfo):
    """A member whose long name, which is one of its own, is looked at before it is read into memory."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:  # for subclasses, as `tarfile` says
        if self.type not in tarfile.REGULAR_TYPES and self.size > MAX_HEADER:
            raise ValueError(f"a header of {self.size:,} bytes")
        return super()._proc_member(archive)


def _checked(path: Path, folder: Path, members: Iterable[tuple[Any, str, int, str]]) -> Iterator[Any]:
    """Members of an archive of which each is a plain file or folder within, and all together are no bomb.

    Args:
        path: Of the archive.
        folder: That they will be in.
        members: Each with its name, its size in bytes, and whether it is a "file", a "folder" or "other".

    Raises:
        DataError: One of them is not.
    """
    limit = min(max(MIN_LIMIT, MAX_GROWTH * path.stat().st_size), shutil.disk_usage(folder).free)
    names, size = set(), 0
    for member, name, member_size, kind in members:
        _refuse_escape(path, name, kind != "other")
        size += max(member_size, 0) + BLOCK
        if size > limit:
            raise DataError(
                f"{path}: more than {limit:,} bytes would come out of this archive of {path.stat().st_size:,}, which "
                f"the disk has no room for, or which is more than {MAX_GROWTH} times as much. Not unpacked."
            )
        if kind == "file":
            if (place := os.path.normpath(name)) in names:
                raise DataError(f"{path}: the member {name!r} is there twice. Not unpacked.")
            names.add(place)
        yield member


def _refuse_escape(path: Path, name: str, is_plain: bool) -> None:
    """Sound archives hold plain files and folders: no need to follow a link to see where it leads."""
    paths = PurePosixPath(name), PureWindowsPath(name)
    if not is_plain or any(path.is_absolute() or path.drive or ".." in path.parts for path in paths):
        raise DataError(f"{path}: the member {name!r} is a link or device, or leads out of the folder. Not unpacked.")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise DataError(f"{path}: the member {name!r} has control characters in its name. Not unpacked.")
