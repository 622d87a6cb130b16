"""Downloading the public traces: resumable, verified, whole or not at all."""

import argparse
import hashlib
import http.client
import logging
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from llmroute_gym.errors import InputError, unknown_name
from llmroute_gym.ground.checks import positive

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 16
ATTEMPTS = 3  # connections in a row that bring nothing new


@dataclass(frozen=True)
class PublicTrace:
    """A published trace.

    Attributes:
        url: where it is published.
        licence: under which terms.
        sha256: checksum of the file in hexadecimal; None where no trusted one is known. Then the
            checksum of the first download is recorded beside the file and later ones are held
            to it, which shows a change but not that the first was genuine.
    """

    url: str
    licence: str
    sha256: str | None = None

    @property
    def file_name(self) -> str:
        """Name of the file on disk: the last part of the URL."""
        return urlsplit(self.url).path.rsplit("/", 1)[-1]


_AZURE = "https://raw.githubusercontent.com/Azure/AzurePublicDataset/master/data"
_BURSTGPT = "https://github.com/HPMLL/BurstGPT/releases/download"
_MOONCAKE = "https://raw.githubusercontent.com/kvcache-ai/Mooncake/main/FAST25-release/traces"

PUBLIC_TRACES = {
    "azure_code_2023": PublicTrace(
        f"{_AZURE}/AzureLLMInferenceTrace_code.csv", "CC-BY 4.0, Microsoft"
    ),
    "azure_conv_2023": PublicTrace(
        f"{_AZURE}/AzureLLMInferenceTrace_conv.csv", "CC-BY 4.0, Microsoft"
    ),
    "burstgpt_1": PublicTrace(f"{_BURSTGPT}/v1.1/BurstGPT_without_fails_1.csv", "CC-BY 4.0, HPMLL"),
    "burstgpt_2": PublicTrace(f"{_BURSTGPT}/v1.1/BurstGPT_without_fails_2.csv", "CC-BY 4.0, HPMLL"),
    "mooncake_conversation": PublicTrace(
        f"{_MOONCAKE}/conversation_trace.jsonl", "Apache-2.0, Moonshot AI"
    ),
    "mooncake_synthetic": PublicTrace(
        f"{_MOONCAKE}/synthetic_trace.jsonl", "Apache-2.0, Moonshot AI"
    ),
    "mooncake_toolagent": PublicTrace(
        f"{_MOONCAKE}/toolagent_trace.jsonl", "Apache-2.0, Moonshot AI"
    ),
}


class _ConnectionBrokeError(Exception):
    """The connection ended before the file did; what has arrived is kept."""


def fetch_trace(
    name: str,
    out: str | os.PathLike[str] = ".",
    *,
    url: str | None = None,
    timeout_s: float = 30.0,
    progress: bool = True,
) -> Path:
    """Downloads a public trace unless it is there already.

    Bytes go to ``FILE.part``, which a later call resumes; the file gets its name once it is
    complete and its checksum is right. ``FILE.sha256`` records the checksum.

    Args:
        name: one of ``PUBLIC_TRACES``.
        out: folder to put the file in; made if absent.
        url: download from here, such as a mirror, instead of the published address.
        timeout_s: longest silence of the server in seconds, > 0.
        progress: show a progress bar on standard error.

    Returns:
        The path of the file, which ``load_trace`` reads.

    Raises:
        InputError: the name is unknown, the server cannot be reached or does not have the file,
            the download broke off, the checksum is wrong, or the file cannot be written.
    """
    if name not in PUBLIC_TRACES:
        raise unknown_name("trace", name, PUBLIC_TRACES)
    trace = PUBLIC_TRACES[name]
    url = trace.url if url is None else url
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise InputError(f"url must begin with http:// or https:// and a host, got {url!r}")
    positive("timeout_s", timeout_s)
    target = Path(out) / trace.file_name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        expected = trace.sha256 or _recorded(target)
        if target.exists():
            _verify(target, target, expected)
        else:
            part = target.with_name(f"{target.name}.part")
            _download(url, part, timeout_s, progress=progress)
            _verify(part, target, expected)
            part.replace(target)
            _tag_file(part).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write {error.filename or target}: {error.strerror or error}; give a folder "
            "that you may write to, with room enough"
        ) from error
    return target


def _download(url: str, part: Path, timeout_s: float, *, progress: bool) -> None:
    """Completes the part file, resuming after broken connections."""
    fruitless = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _transfer(url, part, timeout_s, progress=progress)
        except _ConnectionBrokeError as error:
            after = part.stat().st_size if part.exists() else 0
            fruitless = 0 if after > before else fruitless + 1
            if fruitless == ATTEMPTS:
                raise InputError(
                    f"the download from {url} broke off: {error}; run the command again to "
                    f"resume from {part}"
                ) from error


def _transfer(url: str, part: Path, timeout_s: float, *, progress: bool) -> None:
    """Makes one request and appends what it gives to the part file."""
    tag = _tag_file(part)
    # Without the server's tag nobody could tell whether the rest belongs to the same version.
    have = part.stat().st_size if part.exists() and tag.exists() else 0
    headers = {"Accept-Encoding": "identity", "User-Agent": "llmroute-gym"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": tag.read_text(encoding="utf-8")}
    response = _open(url, headers, timeout_s)
    if response is None:  # nothing beyond the bytes at hand
        part.unlink()
        tag.unlink()
        raise _ConnectionBrokeError("the server refused to resume")
    with response:
        if response.status == 206 and _range_start(response) != have:
            tag.unlink(missing_ok=True)
            raise _ConnectionBrokeError("the server sent another range than asked for")
        if response.status != 206:
            have = 0
        version = response.headers.get("ETag", "W/")
        if version.startswith("W/"):  # weak: does not promise the same bytes
            version = response.headers.get("Last-Modified", "")
        if version:
            tag.write_text(version, encoding="utf-8")
        elif not have:
            tag.unlink(missing_ok=True)
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        _append(response, part, have, total, progress=progress)


def _open(url: str, headers: dict[str, str], timeout_s: float) -> http.client.HTTPResponse | None:
    """Opens the URL; None means that the range asked for lies beyond the file."""
    host = urlsplit(url).netloc
    by_hand = f"download it by hand from {url} and pass workload.path=..."
    try:
        response = urlopen(Request(url, headers=headers), timeout=timeout_s)
        assert isinstance(response, http.client.HTTPResponse)
        return response
    except HTTPError as error:
        error.close()
        if error.code == 416 and "Range" in headers:
            return None
        raise InputError(
            f"{host} answered HTTP {error.code} {error.reason}; check the address or {by_hand}"
        ) from error
    except URLError as error:
        raise InputError(f"could not reach {host}: {error.reason}; {by_hand}") from error
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"could not reach {host}: {str(error) or type(error).__name__}; {by_hand}"
        ) from error
    except ValueError as error:
        raise InputError(f"{url!r} is not a usable address: {error}") from error


def _append(
    response: http.client.HTTPResponse,
    part: Path,
    have: int,
    total: int | None,
    *,
    progress: bool,
) -> None:
    """Copies the response to the part file from byte ``have`` on."""
    from tqdm import tqdm

    received = have
    name = part.name.removesuffix(".part")
    with (
        part.open("ab" if have else "wb") as file,
        tqdm(
            total=total, initial=have, desc=name, unit="B", unit_scale=True, disable=not progress
        ) as bar,
    ):
        while True:
            try:
                chunk = response.read(CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise _ConnectionBrokeError(
                    f"{str(error) or type(error).__name__} after {received} bytes"
                ) from error
            if not chunk:
                break
            file.write(chunk)
            received += len(chunk)
            bar.update(len(chunk))
    if total is not None and received != total:
        raise _ConnectionBrokeError(f"{received} of {total} bytes arrived")


def _range_start(response: http.client.HTTPResponse) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _verify(file: Path, target: Path, expected: str | None) -> None:
    """Holds a file to its checksum, or records one for ``target`` where none is known."""
    found = _sha256(file)
    if expected is not None and found != expected:
        if file == target:
            raise InputError(
                f"{target} has the sha256 {found}, expected {expected}; delete it to download it "
                f"again (and {_record(target).name} if the published file has changed)"
            )
        file.unlink()
        with suppress(FileNotFoundError):
            _tag_file(file).unlink()
        raise InputError(
            f"the download of {target.name} has the sha256 {found}, expected {expected}, and was "
            f"discarded; try again, or delete {_record(target)} if the published file has changed"
        )
    if expected is None:
        logger.warning(
            "%s: no published checksum to compare with; recorded sha256 %s", target.name, found
        )
    _record(target).write_text(f"{found}  {target.name}\n", encoding="utf-8")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _recorded(target: Path) -> str | None:
    """Returns the checksum that an earlier download recorded."""
    record = _record(target)
    if not record.exists():
        return None
    fields = record.read_text(encoding="utf-8", errors="replace").split()
    if not fields or not re.fullmatch("[0-9a-f]{64}", fields[0]):
        raise InputError(f"{record} does not hold a sha256; delete it to record a new one")
    return fields[0]


def _record(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _tag_file(part: Path) -> Path:
    """Holds the server's version tag of a partial download."""
    return part.with_name(f"{part.name.removesuffix('.part')}.tag.part")


class _OneLineParser(argparse.ArgumentParser):
    """Reports wrong arguments in one sentence, without the usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; --help shows the options\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: command-line words; None takes them from the process.

    Returns:
        0, or 2 after one sentence on standard error.
    """
    listing = "\n".join(
        f"  {name:22} {trace.licence:24} {trace.url}" for name, trace in PUBLIC_TRACES.items()
    )
    parser = _OneLineParser(
        prog="python -m llmroute_gym.fetch",
        description="Download a public LLM trace; a broken download is resumed.",
        epilog=f"traces:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="which trace; see below")
    parser.add_argument(
        "--out", default=".", metavar="DIR", help="folder to put it in (%(default)s)"
    )
    parser.add_argument("--url", help="download from here, such as a mirror")
    options = parser.parse_args(arguments)
    try:
        path = fetch_trace(options.name, options.out, url=options.url)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(path)
    return 0
