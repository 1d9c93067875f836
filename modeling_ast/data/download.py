"""Archives from the network: fetched with continuation, checked, and unpacked so that nothing lands elsewhere."""

import hashlib
import http.client
import os
import re
import shutil
import stat
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from tqdm.auto import tqdm

from modeling_ast.data.label_tables import DataError

CHUNK = 1 << 20  # bytes
TIMEOUT = 60  # seconds without a byte


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
                f"{archive.url}: cannot be fetched ({error}). Run the command again to continue, or fetch it by other "
                "means and name it with --source."
            ) from error
        _check(part, archive.sha256)
        os.replace(part, path)
    return path


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
        total = _total(response) if range_start else int(response.headers.get("Content-Length", 0)) or None
        size = _copy(response, part, start, total)
    if total is not None and size < total:
        raise ConnectionError(f"the connection ended after {size:,} of {total:,} bytes")


def _total(response) -> int | None:
    """Size of the whole file, from the end of `Content-Range: bytes 5-9/10`."""
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isdecimal() else None


def _copy(response, part: Path, start: int, total: int | None) -> int:
    bar = tqdm(desc=f"Fetching {part.stem}", initial=start, total=total, unit="B", unit_scale=True)
    with bar, open(part, "ab" if start else "wb") as file:
        while chunk := response.read(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
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
        folder: Where to; nothing is written elsewhere.

    Raises:
        DataError: No such archive, a broken one, or one with a member outside of `folder`, a link or a device.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        if zipfile.is_zipfile(path):
            _unpack_zip(path, unfinished)
        elif tarfile.is_tarfile(path):
            _unpack_tar(path, unfinished)
        else:
            raise DataError(f"{path}: expected a ZIP or TAR file.")
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise DataError(f"{path}: a broken archive ({error}). Delete it and fetch it again.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # of an interruption; the finished folder has another name
    return folder


def _unpack_zip(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)
            _refuse_escape(path, member.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
        for member in tqdm(members, desc=f"Unpacking {path.name}"):
            archive.extract(member, folder)  # compares the CRC


def _unpack_tar(path: Path, folder: Path) -> None:
    with tarfile.open(path) as archive:
        for member in tqdm(archive, desc=f"Unpacking {path.name}"):
            _refuse_escape(path, member.name, member.isfile() or member.isdir())
            archive.extract(member, folder, filter="data")


def _refuse_escape(path: Path, name: str, is_plain: bool) -> None:
    """Sound archives hold plain files and folders: no need to follow a link to see where it leads."""
    paths = PurePosixPath(name), PureWindowsPath(name)
    if not is_plain or any(path.is_absolute() or path.drive or ".." in path.parts for path in paths):
        raise DataError(f"{path}: the member {name!r} is a link or device, or leads out of the folder. Not unpacked.")
