"""A chat that lives behind an OpenAI-compatible endpoint, ours or another's.

Knows HTTP and the wire format. Refuses to know models: what ours tells of its chat it passes on, of another's
it knows the name only.
"""

import asyncio
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import httpx

from chat import Delta, Message
from sampling import OPTIONS, SamplingParams
from serving.receiving import Receiver, refusal, words_for_errors

CONNECT_SECONDS = 10
SILENCE_SECONDS = 600  # without a byte from the server; a long prompt on a slow machine takes minutes
# What every such server knows, under our names for it. Other options are sent where they are switched on.
STANDARD = {"temperature", "top_p", "stop", "seed", "max_new_tokens"}


class RemoteChatModel:
    """A chat whose model runs elsewhere. A `chat.Chat`.

    Args:
        base_url: as OpenAI's clients take it: "http://host:8000/v1".
        model: its name there; None takes the first that the server offers.
        api_key: the server's key, if it wants one.

    Raises:
        ConnectionError: no such server answers.
        PermissionError: it wants another key.
        ValueError: it has no such model.
    """

    def __init__(self, base_url: str, model: str | None = None, api_key: str | None = None):
        self._url = base_url.rstrip("/")
        # A loop in a thread of its own: only there can a request be given up at any moment by any thread.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="remote chat", daemon=True)
        self._thread.start()
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None),
        )
        try:
            entry = self._find(model)
        except BaseException:
            self.close()
            raise
        about = entry.get("chat")
        self._is_ours = isinstance(about, dict)
        about = about if self._is_ours else {}
        self.name: str = entry["id"]
        self.description: str = ", ".join(filter(None, [about.get("description"), f"at {self._url}"]))
        self.system_prompt: str | None = about.get("system_prompt")
        self.max_context: int | None = entry.get("max_model_len")
        self.max_requests: int = about.get("max_requests", 16)
        self.template_options = {
            name: tuple(values) for name, values in about.get("template_options", {}).items()
        }
        known = {field.name for field in fields(SamplingParams)}
        defaults = about.get("defaults", {})
        self.defaults = SamplingParams(**{name: defaults[name] for name in defaults if name in known})

    def stream(
        self,
        messages: Sequence[Message],
        sampling: SamplingParams | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> "RemoteReply":
        """The reply to the last message. The server is asked when the first piece is.

        Where the answer breaks off, the server is asked once more, for the rest of it if it is ours;
        `stats.resumed` tells.

        Raises:
            ValueError: the server refuses the messages or options.
            OSError: it does not answer, wants a key, has no time, or failed.

        All these, in words, come from the iterator, since only the server knows.
        """
        request = self._request(messages, sampling or self.defaults, template_options or {})
        receiver = Receiver(self._client, f"{self._url}/chat/completions", request, goes_on=self._is_ours)
        return RemoteReply(self._loop, receiver)

    def generate(
        self,
        messages: Sequence[Message],
        sampling: SamplingParams | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> str:
        """The whole answer to the last message, without thoughts."""
        return "".join(
            delta for delta in self.stream(messages, sampling, template_options) if not delta.is_thought
        )

    def close(self) -> None:
        """Break off what is running and leave the server."""
        if not self._loop.is_running():
            return
        asyncio.run_coroutine_threadsafe(self._leave(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _leave(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()
        # Generators that httpx has left half read are closed by tasks of their own.
        await asyncio.sleep(0)
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
        await self._loop.shutdown_asyncgens()

    def _find(self, model: str | None) -> dict[str, Any]:
        """What the server says of the model."""
        offered = asyncio.run_coroutine_threadsafe(self._models(), self._loop).result()
        if offered is None and model is None:
            raise ValueError(f"{self._url} does not tell its models: name the one you want.")
        entries = {entry["id"]: entry for entry in offered or []}
        if model is None and not entries:
            raise ValueError(f"{self._url} offers no model.")
        if model is None:
            return next(iter(entries.values()))
        if offered is not None and model not in entries:
            raise ValueError(f"{self._url} has no model {model!r}, but {', '.join(entries)}.")
        return entries.get(model, {"id": model})

    async def _models(self) -> list[dict[str, Any]] | None:
        with words_for_errors(self._url):
            response = await self._client.get(f"{self._url}/models", timeout=CONNECT_SECONDS)
            if response.status_code in (404, 405):
                return None
            if response.status_code != 200:
                raise refusal(self._url, response.status_code, response.content)
            return response.json()["data"]

    def _request(
        self, messages: Sequence[Message], sampling: SamplingParams, template_options: Mapping[str, Any]
    ) -> dict[str, Any]:
        turns = []
        for message in messages:
            turn = {"role": message["role"], "content": message["content"]}
            if self._is_ours and message.get("thought"):
                turn["reasoning_content"] = message["thought"]
            # To ours an empty system prompt means: not even your own. Others may trip over it.
            if self._is_ours or turn["role"] != "system" or turn["content"].strip():
                turns.append(turn)
        request = {
            "model": self.name,
            "messages": turns,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._is_ours:  # whose pieces are several tokens
            request["stream_options"]["continuous_usage_stats"] = True
        for option in OPTIONS.values():
            value = getattr(sampling, option.name)
            wanted = self._is_ours or option.name in STANDARD or value != option.off
            if option.name != "logprobs" and value is not None and value != () and wanted:
                request["max_tokens" if option.name == "max_new_tokens" else option.name] = value
        if sampling.logprobs is not None:
            request |= {"logprobs": True, "top_logprobs": sampling.logprobs}
        if sampling.json_schema is not None:
            schema = {"name": "answer", "schema": json.loads(sampling.json_schema)}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        if template_options:
            request["chat_template_kwargs"] = dict(template_options)
        return request


class RemoteReply:
    """A reply that comes from a server. A `chat.ReplyStream`."""

    waiting = False  # the server does not tell

    def __init__(self, loop: asyncio.AbstractEventLoop, receiver: Receiver):
        self._loop = loop
        self._arrived = receiver.arrived
        self.stats = receiver.stats
        self.logprobs = receiver.logprobs
        # It does not hold this object, which so can see that nobody else does either.
        self._work = receiver.run()
        self._future = None
        self._starting = threading.Lock()
        self._over = False

    def __iter__(self) -> "RemoteReply":
        return self

    def __next__(self) -> Delta:
        with self._starting:
            if self._over:
                raise StopIteration
            if self._future is None:
                self._future = asyncio.run_coroutine_threadsafe(self._work, self._loop)
        arrived = self._arrived.get()
        if isinstance(arrived, Delta):
            return arrived
        self._over = True
        if arrived is None:
            raise StopIteration
        raise arrived

    def close(self) -> None:
        """Hang up, whereupon the server stops; harmless when the reply is over. Any thread may call this."""
        with self._starting:
            self._over = True
        self.stats.finish("cancelled")
        self._arrived.put(None)
        if self._future is None:
            self._work.close()
        else:
            self._future.cancel()

    def __del__(self):
        if not self._over:
            self.close()
