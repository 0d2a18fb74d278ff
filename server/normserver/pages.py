"""Pages of long lists: a token is the last item's key, so a page is right whatever happened since the one before."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

from normserver import names
from normserver.errors import InvalidArgument

MAX_PAGE = 1000


def limit(value: int, field: str, *, usual: int, most: int) -> int:
    """How many of something, `usual` if that is left open, and never more than `most`.

    Raises:
        InvalidArgument: it is negative.
    """
    if value < 0:
        raise InvalidArgument(field, f"is {value}; expected at least 0")
    return min(value or usual, most)


def asked(page_size: int, page_token: str) -> tuple[int, str]:
    """How many items, and the key that they come after.

    Raises:
        InvalidArgument: the size is negative, or the token is not one of ours.
    """
    size = limit(page_size, "page_size", usual=MAX_PAGE, most=MAX_PAGE)
    try:
        after = base64.b64decode(page_token.encode("ascii"), altchars=b"-_", validate=True).decode("ascii")
        names.check_prefix(after, "page_token")
    except (binascii.Error, UnicodeError, InvalidArgument):
        raise InvalidArgument("page_token", "is none that this service gave; begin again without one") from None
    return size, after


def next_token(keys: Sequence[str], size: int) -> str:
    """The token of the next page, of the keys found when one more than a page was asked for; empty on the last."""
    return base64.urlsafe_b64encode(keys[size - 1].encode()).decode() if len(keys) > size else ""
