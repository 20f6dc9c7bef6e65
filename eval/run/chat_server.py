"""Chat server: a model behind an address that speaks OpenAI's chat completions.

What a request asked for in vain (429, 5xx, no connection) is asked again, with growing pauses. What the server refuses
for its content is a DataError about this one request; a server that is gone, or refuses everything, is an EvalError.
"""

import logging
import os
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import httpx

from internvl.errors import ConfigError, DataError, EvalError, did_you_mean

logger = logging.getLogger(__name__)

NUM_TRIES, FIRST_PAUSE_S, LONGEST_PAUSE_S = 7, 1.0, 60.0
TIMEOUT = httpx.Timeout(600.0, connect=10.0)
_BUSY = (408, 409, 429, 500, 502, 503, 504)
_WRONG_ADDRESS = (401, 403, 404, 405)


@dataclass(frozen=True)
class ChatServer:
    """The address, the model, and the words of the command line that gave them, for messages."""

    url: str  # with or without `/v1` at its end
    model: str
    url_option: str
    model_option: str
    key_variable: str  # environment variable with the server's key, which is written down nowhere

    @property
    def base_url(self) -> str:
        """Where the paths of the API begin."""
        url = self.url.rstrip("/")
        return url if url.endswith("/v1") else f"{url}/v1"

    def open(self) -> httpx.Client:
        """A client that sends the key, if there is one. Raises ConfigError for what is no address."""
        key = os.environ.get(self.key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            return httpx.Client(base_url=self.base_url, headers=headers, timeout=TIMEOUT, verify=_read_certificates())
        except httpx.InvalidURL as error:
            raise ConfigError(f"{self.url_option} {self.url!r}: {error}; expected such as http://host:8000") from error

    def check(self) -> None:
        """Ask for the list of models. Raises ConfigError if there is no server, or no such model."""
        place = f"{self.url_option} {self.url}"
        try:
            with self.open() as client:
                reply = client.get("/models")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ConfigError(f"{place}: no server answers ({error}); start it, or correct the address") from error
        if reply.status_code != 200:
            raise ConfigError(f"{place}: {_describe(reply)}; {self._hint(reply)}")
        try:
            names = [str(entry["id"]) for entry in reply.json()["data"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{place}: {reply.url} is no list of models") from error
        if self.model not in names:
            guess = did_you_mean(self.model, names)
            raise ConfigError(
                f"{self.model_option} {self.model!r} is not served there{guess}; it has {', '.join(names)}"
            )

    def complete(self, client: httpx.Client, body: Mapping[str, object]) -> httpx.Response:
        """The reply to a request for a chat completion; `body` says all but the model.

        Raises:
            DataError: The server refuses this request.
            EvalError: The server is gone, or refuses every request.
        """
        pause = FIRST_PAUSE_S
        for number in range(NUM_TRIES):
            problem = ""
            try:
                reply = client.post("/chat/completions", json={"model": self.model, **body})
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if reply.status_code == 200:
                    return reply
                problem = _describe(reply)
                if reply.status_code in _WRONG_ADDRESS:
                    raise EvalError(f"{self.url}: {problem}; {self._hint(reply)}")
                if reply.status_code not in _BUSY:
                    raise DataError(f"the server refused it: {problem}", kind="refused")
                pause = _read_pause(reply, pause)
            if number + 1 < NUM_TRIES:
                logger.warning("%s: asked again in %.0f s", problem, pause)
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
        raise EvalError(
            f"{self.url}: {NUM_TRIES} requests in a row got no answer, the last one {problem}; all answers so far are "
            "kept, start the same command again when the server is back"
        )

    def _hint(self, reply: httpx.Response) -> str:
        if reply.status_code in (401, 403):
            return f"put the server's key into the environment variable {self.key_variable}"
        return "give the address in front of /v1/chat/completions"


def read_completion(reply: httpx.Response) -> str:
    """What the model said, stripped. Raises DataError if the reply is not a chat completion."""
    with explain_reply(reply):
        return str(reply.json()["choices"][0]["message"]["content"] or "").strip()


@contextmanager
def explain_reply(reply: httpx.Response) -> Iterator[None]:
    """Whatever a reply in another form lets a block raise becomes a DataError that shows the reply's beginning."""
    try:
        yield
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        message = f"the server's answer is not a chat completion: {reply.text[:200]!r}"
        raise DataError(message, kind="refused") from error


@cache
def _read_certificates() -> ssl.SSLContext:
    """The certificates that https is checked with; reading them takes a tenth of a second."""
    return httpx.create_ssl_context()


def _describe(reply: httpx.Response) -> str:
    try:
        message = reply.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = reply.text[:200]
    return f"status {reply.status_code}, {' '.join(str(message).split())}"


def _read_pause(reply: httpx.Response, pause: float) -> float:
    try:
        return min(max(float(reply.headers["Retry-After"]), pause), LONGEST_PAUSE_S)
    except (KeyError, ValueError):
        return pause
