"""One question to a server with OpenAI's chat completions, and what may go wrong on the way.

The client honours Retry-After and retries; where it gives up, the same request is made again
after longer pauses, and then an error of one sentence tells what happened.
"""

import json
import os
import time
from typing import Any
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletion

KEY_VARIABLE = "OPENAI_API_KEY"
MAX_RETRIES = 3  # by the client
PAUSES = (5.0, 20.0, 60.0)  # seconds before the same request again, when the client gave up


class UnusableReply(Exception):
    """A reply that is none, or not whole; its text is the reason, in two or three words."""


class ChatServer:
    """A chat model behind an address. The key lives in the client and goes nowhere else.

    Args:
        base_url: such as https://api.openai.com/v1; the key is in the environment variable
            OPENAI_API_KEY.
        timeout: seconds that one answer may take.
        schema: the JSON schema that answers follow; where the server cannot hold its model to a
            schema it is asked for JSON, and at last for anything.

    Raises:
        ValueError: an address or a key that cannot be one.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        timeout: float,
        temperature: float,
        max_tokens: int,
        schema: dict[str, Any],
    ) -> None:
        if "@" in base_url:  # it would stand in logs and records
            raise ValueError(
                f"the base URL holds a name or password, expected a key in {KEY_VARIABLE} alone"
            )
        try:
            parts = urlsplit(base_url)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # a port that is no number
            usable = False
        if not usable:
            raise ValueError(
                f"base URL is {base_url!r}, expected one like https://api.openai.com/v1"
            )
        if not model:
            raise ValueError("the model's name is empty")
        self._secret = os.environ.get(KEY_VARIABLE, "").strip()
        if not self._secret:
            raise ValueError(
                f"{KEY_VARIABLE} is not set, expected the server's key, or any word for a server "
                "that asks for none"
            )
        if not (self._secret.isascii() and self._secret.isprintable()):
            raise ValueError(f"{KEY_VARIABLE} holds a character that no key has")
        self.base_url, self.model, self.max_tokens = base_url, model, max_tokens
        self.temperature, self._answered = temperature, False
        self._formats: list[Any] = [
            {
                "type": "json_schema",
                "json_schema": {"name": "reply", "strict": True, "schema": schema},
            },
            {"type": "json_object"},
            openai.omit,
        ]
        self._client = openai.OpenAI(
            api_key=self._secret, base_url=base_url, timeout=timeout, max_retries=MAX_RETRIES
        )

    def ask(self, messages: list[dict[str, str]]) -> str:
        """The model's answer.

        Raises:
            UnusableReply: this reply cannot be used; another one may.
            ConnectionError: the server cannot be reached, refuses, or stopped answering.
        """
        pauses = list(PAUSES)
        while True:
            try:
                return self._content(messages)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if self._answered or len(self._formats) == 1:
                    raise self._refusal(error) from None
                del self._formats[0]
                continue
            except (openai.RateLimitError, openai.InternalServerError) as error:
                if error.code == "insufficient_quota":
                    raise self._refusal(error) from None
                why = f"HTTP {error.status_code}"
            except openai.APITimeoutError:
                why = "no answer in time"
            except openai.APIConnectionError as error:
                why = self._clean(error.__cause__ or error)
                if not self._answered:
                    raise ConnectionError(f"{self.base_url} cannot be reached: {why}") from None
            except openai.APIStatusError as error:
                raise self._refusal(error) from None
            except (openai.APIError, json.JSONDecodeError):
                raise UnusableReply("unreadable reply") from None
            if not pauses:
                raise ConnectionError(f"{self.base_url} does not answer: {why}")
            time.sleep(pauses.pop(0))

    def _content(self, messages: list[Any]) -> str:
        completion = self._client.chat.completions.create(
            model=self.model,
            messages=messages,
            response_format=self._formats[0],
            temperature=self.temperature,
            max_completion_tokens=self.max_tokens,
        )
        if not isinstance(completion, ChatCompletion):  # a web page, say
            raise ConnectionError(f"{self.base_url} does not answer as OpenAI's servers do")
        self._answered = True
        if not completion.choices:
            raise UnusableReply("unreadable reply")
        choice = completion.choices[0]
        if choice.finish_reason == "length":
            raise UnusableReply("reply cut off")
        if not choice.message.content:
            raise UnusableReply("no reply")
        return choice.message.content

    def _refusal(self, error: openai.APIStatusError) -> ConnectionError:
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            # Its own words may repeat a part of the key.
            return ConnectionError(f"{self.base_url} refused the key in {KEY_VARIABLE}")
        said = error.body.get("message") if isinstance(error.body, dict) else None
        return ConnectionError(
            f"{self.base_url} refused {self.model}: HTTP {error.status_code}"
            + (f", {self._clean(said)}" if said else "")
        )

    def _clean(self, said: object) -> str:
        """Another program's words: on one line, short, and without the key."""
        return " ".join(str(said).replace(self._secret, "***").split())[:200]
