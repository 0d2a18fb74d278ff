"""Pages of long lists: a token is the last item's key, so a page is right whatever happened since the one before."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

from normserver import names
from normserver.errors import InvalidArgument

MAX_PAGE = 1000


def asked(page_size: int, page_token: str) -> tuple[int, str]:
    """How many items, and the key that they come after.

    Raises:
        InvalidArgument: the size is negative, or the token is not one of ours.
    """
    if page_size < 0:
        raise InvalidArgument("page_size", f"is {page_size}; expected at least 0")
    try:
        after = base64.b64decode(page_token.encode("ascii"), altchars=b"-_", validate=True).decode("ascii")
        names.check_prefix(after, "page_token")
    except (binascii.Error, UnicodeError, InvalidArgument):
        raise InvalidArgument("page_token", "is none that this service gave; begin again without one") from None
    return min(page_size or MAX_PAGE, MAX_PAGE), after


def next_token(keys: Sequence[str], size: int) -> str:
    """The token of the next page, of the keys found when one more than a page was asked for; empty on the last."""
    return base64.urlsafe_b64encode(keys[size - 1].encode()).decode() if len(keys) > size else ""
