"""What a job's `file` can be: a path, a `file://` URL, or an address to fetch from.

An address may hold secrets, in its user info or in the query of a signed URL. They are needed to
fetch, and nowhere else: everything that is shown or written down is `shown_address`.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from masklet.errors import UserError

if TYPE_CHECKING:
    from masklet.settings import Settings

WEB = ("http", "https")
MAX_LENGTH = 8192
# with the colons of chained addresses such as zip::http://, to refuse them by their scheme
_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.:-]*?)://")


def scheme_of(file: str | Path) -> str:
    """The scheme in lower case; '' for a path, which a Path always is."""
    found = _SCHEME.match(file) if isinstance(file, str) else None
    return found[1].lower() if found else ""


def shown_address(file: str | Path) -> str:
    """An address without user info, query and fragment; a path as it is.

    Of what is neither, an address with something before it, nothing is shown.
    """
    scheme, text = scheme_of(file), str(file).strip()
    if not scheme and "://" in text:
        return "…"
    if scheme in ("", "file"):
        return str(file)
    try:
        parts = urlsplit(text)
        host, _ = parts.netloc.rpartition("@")[2], parts.port
    except ValueError:  # a port that is no number may be a part of a password
        host = ""
    if not host:
        return f"{scheme}://…"
    return f"{scheme}://{host}{parts.path}"


def local_path(file: str | Path) -> Path | None:
    """The absolute path of what lies on this machine; None for an address to fetch from.

    Raises UserError for what is no path.
    """
    text = os.fspath(file)
    if scheme := scheme_of(file):
        if scheme != "file":
            return None
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise UserError(f"{text}: names another machine; a file address is file:///path")
        text = unquote(parts.path)
    if not text or "\0" in text:
        raise UserError("file is empty or holds a NUL character: give the path of a video")
    return Path(text).absolute()


def check_address(address: str, settings: "Settings") -> None:
    """Raise UserError for an address that is not fetched from, whatever is there."""
    scheme, shown = scheme_of(address), shown_address(address)
    if scheme not in settings.source_schemes:
        known = ", ".join(sorted(settings.source_schemes)) or "none"
        raise UserError(
            f"{shown[:300]}: {scheme[:60]}:// addresses are not fetched from here; the operator "
            f"allows {known} (MASKLET_SOURCE_SCHEMES)"
        )
    if len(address) > MAX_LENGTH:
        raise UserError(f"{shown[:300]}…: is longer than {MAX_LENGTH} characters")
    try:
        parts = urlsplit(address)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that do not match, or a port that is none
        has_host = False
    if not has_host or any(ord(c) < 32 or c in "\x7f\\" for c in address):
        raise UserError(f"{shown}: is no address; it has no host, or characters that none has")
    if scheme in WEB:
        return
    if "::" in address:
        raise UserError(f"{shown}: chained addresses (::) are not fetched from")
    if ":" in parts.netloc:
        raise UserError(
            f"{shown}: credentials for a store come from the environment, not from the address"
        )


def file_name(address: str) -> str:
    """A safe name for what is at an address, from the last part of its path."""
    last = unquote(urlsplit(address).path).rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", last).lstrip("_.-")[:100] or "source"
