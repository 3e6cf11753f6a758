"""Asking a server for JSON, with patience.

What may pass by itself (a server that starts, is busy, or has lost a connection) is asked again, each time after about
twice the wait, spread at random so that many askers do not come back at once. What will not pass is told in one
sentence: a `Refusal` has the server's words, and whoever asked knows what to do about them.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mnemonist.errors import UserError

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that may be others next time."""
LONGEST_WAIT = 60.0
"""Seconds between two tries at most, whatever a server asks for."""
LARGEST_REPLY = 2**27
"""Bytes; a reply that is longer is none."""
RANDOM = random.SystemRandom()
"""Of its own, so that waiting changes nobody's draws."""
WORDS = 300
"""Characters of a server's complaint that are passed on."""


class Refusal(UserError):
    """The server's last word."""

    def __init__(self, status: int, url: str, words: str) -> None:
        self.status, self.words = status, words
        super().__init__(f"{url} answers {status}: {words or 'without a reason'}")


@dataclass(frozen=True)
class Client:
    """Where to ask, and how long to try.

    Raises:
        UserError: the address is none, or a setting is out of range.
    """

    url: str
    """With scheme and host; a path is appended to it."""
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 300.0
    """Seconds that the server may be silent."""
    retries: int = 5
    """Tries after the first one."""
    patience: float = 1.0
    """Seconds before the second try, about; doubled for each one more."""

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{self.url!r} is no address of a server; write it like http://localhost:8000")
        if self.timeout <= 0 or self.retries < 0 or self.patience < 0:
            raise UserError(
                f"timeout is {self.timeout}, retries {self.retries} and patience {self.patience}; the first must be "
                "above 0, the others not below"
            )

    def ask(self, path: str, body: Mapping[str, Any] | None, stopped: threading.Event | None = None) -> dict[str, Any]:
        """POST a body, or GET without one; the object that comes back.

        A server that has been silent for the whole timeout is asked once more and no oftener, whatever `retries` says.

        Args:
            path: behind the address.
            body: as JSON values.
            stopped: when it is set, nothing is tried again.

        Raises:
            Refusal: the server says no.
            UserError: it does not answer, or what it answers is no JSON object.
        """
        stopped = stopped or threading.Event()
        waits = (self.patience * 2**tried * RANDOM.uniform(0.5, 1.5) for tried in range(self.retries))
        silences = 0
        while True:
            try:
                return self._once(path, body)
            except _Passing as passing:
                silences += isinstance(passing, _Silence)
                wait = next(waits, None) if silences < 2 else None
                if wait is None or stopped.wait(min(LONGEST_WAIT, max(wait, passing.wait))):
                    raise passing.error from passing.__cause__

    def _once(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        url = self.url + path
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, headers)
        try:
            with self._opener().open(request, timeout=self.timeout) as reply:
                content = reply.read(LARGEST_REPLY + 1)
                if len(content) <= LARGEST_REPLY and reply.length:  # is still to come, and does not
                    raise http.client.IncompleteRead(content, reply.length)
        except urllib.error.HTTPError as error:
            with error:
                refusal = Refusal(error.code, url, _complaint(error))
            if error.code in PASSING:
                raise _Passing(refusal, _seconds(error.headers.get("Retry-After"))) from error
            raise refusal from error
        except TimeoutError as error:
            raise _Silence(self._too_slow(url)) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise _Silence(self._too_slow(url)) from error
            raise _Passing(
                UserError(f"nothing answers at {url} ({error.reason}); start the server, or check its address")
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise _Passing(
                UserError(f"{url} breaks off in the middle of its reply ({error!r}); look at its log")
            ) from error
        try:
            values = json.loads(content) if len(content) <= LARGEST_REPLY else None
        except ValueError:
            values = None
        if not isinstance(values, dict):
            begin = content[:60].decode(errors="replace")
            raise UserError(
                f"{url} does not answer with a JSON object but {begin!r}; check that it speaks the OpenAI protocol"
            )
        return values

    def _opener(self) -> urllib.request.OpenerDirector:
        # A proxy of the environment is for the world outside, and could not reach a server of this machine.
        host = urllib.parse.urlsplit(self.url).hostname or ""
        local = host in ("localhost", "::1") or host.startswith("127.")
        return urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))

    def _too_slow(self, url: str) -> UserError:
        return UserError(
            f"{url} does not answer within {self.timeout:g} s; allow it a longer timeout, or ask for fewer prompts at "
            "a time or fewer tokens"
        )


class _Passing(Exception):
    """What may be otherwise next time, and the seconds that the server asks for."""

    def __init__(self, error: UserError, wait: float = 0.0) -> None:
        super().__init__(str(error))
        self.error, self.wait = error, wait


class _Silence(_Passing):
    """Nothing came for as long as the timeout."""


def _seconds(text: str | None) -> float:
    """Of a Retry-After; those that name a date count as none."""
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        return 0.0


def _complaint(error: urllib.error.HTTPError) -> str:
    """What a server gives as its reason, in the forms that servers have."""
    try:
        text = error.read(2**16).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        return words_of(json.loads(text))
    except ValueError:
        return words_of(text)


def words_of(values: Any) -> str:
    """What a server gives as its reason in a text or in JSON values, in the forms that servers have."""
    for name in ("error", "message", "detail"):
        values = values.get(name, values) if isinstance(values, dict) else values
    return " ".join(str(values).split())[:WORDS]
