"""Names of files of another machine: which of them can be kept on this one, whatever its system is."""

from __future__ import annotations

import re

_MISREAD = re.compile(r"[\\\0\n\r:]")
_RESERVED_ON_WINDOWS = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def unportable(path: str) -> str:
    """Return why a relative path (with `/`) cannot be kept below a folder here; empty when it can.

    A path that is absolute or leads out of the folder is among those that cannot.
    """
    if any(part in ("", ".", "..") or _RESERVED_ON_WINDOWS.fullmatch(part) for part in path.split("/")):
        return "named as only some systems allow"
    if _MISREAD.search(path):
        return "named with a character that another system reads otherwise"
    return ""
