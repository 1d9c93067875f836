"""Archives from the network: fetched with continuation, checked, and unpacked so that nothing lands elsewhere."""

import hashlib
import http.client
import os
import re
import tarfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from modeling_ast.data.files import new_folder
from modeling_ast.data.labels import DataError, plain

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
        if error.headers.get("Content-Range", "").endswith(f"/{start}"):  # all of it was there
            return
        part.unlink()
        return _download(url, part)
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:  # sent from its beginning
            start = 0
        total = None if response.length is None else start + response.length
        bar = tqdm(desc=f"Fetching {part.stem}", initial=start, total=total, unit="B", unit_scale=True)
        with bar, open(part, "ab" if start else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            size = file.tell()
    if total is not None and size < total:
        raise ConnectionError(f"the connection ended after {size:,} of {total:,} bytes")


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
        DataError: No such archive, a broken one, one with a member that would be elsewhere, or no room for it.
    """
    if folder.is_dir():
        return folder
    try:
        with new_folder(folder) as unfinished:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    for member in tqdm(archive.infolist(), desc=f"Unpacking {path.name}"):
                        archive.extract(member, unfinished)
            elif tarfile.is_tarfile(path):
                with tarfile.open(path) as archive:
                    for member in tqdm(archive, desc=f"Unpacking {path.name}"):
                        archive.extract(member, unfinished, filter="data")
            else:
                raise ValueError("expected a ZIP or TAR file")
    except Exception as error:  # zip, tar and each way of packing raise their own, and the disk its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be unpacked ({reason}).") from error
    return folder
