"""Tells a URL about an alert. The URL is a secret (chat services put a token into it): only its host is ever said."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, build_opener

from hspi.client import NoRedirects
from hspi.errors import ConfigError

SECONDS, TRIES, PAUSE = 10.0, 3, 1.0


def checked(url: str) -> str:
    """The URL itself. Raises ConfigError if it is not http(s) with a host."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    if not good:
        raise ConfigError("a webhook must be an http or https URL with a host, but it is not")
    return url


def notify(url: str, payload: Mapping[str, Any], *, seconds: float = SECONDS, pause: float = PAUSE) -> str:
    """POST the payload as JSON. Returns "sent to HOST", or "failed: …" in one line; it never raises.

    seconds: before a silent server is given up; what fails for a moment (no answer, 429, 5xx) is tried TRIES times.
    """
    host = urlsplit(url).hostname or ""
    why = ""
    for left in range(TRIES - 1, -1, -1):
        try:
            body = json.dumps(payload).encode()
            request = Request(url, body, {"Content-Type": "application/json", "User-Agent": "hspi"}, method="POST")
            with build_opener(NoRedirects).open(request, timeout=seconds):
                return f"sent to {host}"
        except HTTPError as error:
            error.close()
            why = f"{host} answered {error.code}"
            if error.code != 429 and error.code < 500:
                break
        except Exception as error:  # whatever it is, the alert itself must go on
            why = f"{host}: {type(error).__name__}"
        if left:
            time.sleep(pause)
    return f"failed: {why}"
