"""A judge behind an OpenAI-compatible endpoint: `POST <url>/chat/completions`.

Requests run some at a time, are repeated with growing pauses, and end with the time
budget; verdicts are kept on disk under a hash of what was asked. What could not be had
is NaN: the response is then unscored. Use it with temperature 0 only, as here, and
never as the only reward: https://arxiv.org/abs/2306.05685 lists its biases.
"""

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import httpx

from vrl_jax.rewards.combine import Reward
from vrl_jax.types import Episode

Message = Mapping[str, Any]
ReadVerdict = Callable[[str], float | None]

PROMPT = """Is the response's answer to the question the same as the reference answer?
Other wording, units and number formats are fine; reasoning does not matter.

Question: {question}
Reference answer: {answer}
Response: {response}

Reply with one word: yes or no."""

MAX_REPLY = 1 << 20
"""Bytes of a reply that are read."""

_LAST_WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_WORTH_A_RETRY = {408, 409, 425, 429, *range(500, 600)}


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where the judge is, and what it may cost.

    `api_key` is sent as a bearer token and never written. At most `concurrency`
    requests run at once; one takes at most `seconds`, is tried `attempts` times with
    pauses of pause, 2 pause, 4 pause, ... (jittered, or what Retry-After asks for), and
    all of a call together take at most `budget_seconds`.
    """

    url: str
    model: str
    api_key: str = dataclasses.field(default="", repr=False)
    concurrency: int = 16
    seconds: float = 60.0
    attempts: int = 4
    pause: float = 0.5
    budget_seconds: float = 300.0
    max_tokens: int = 256


@dataclasses.dataclass
class Costs:
    """What a judge has cost since it was made."""

    asked: int = 0
    from_cache: int = 0
    requests: int = 0
    failed_requests: int = 0
    unreadable: int = 0
    unscored: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


def yes_or_no(reply: str) -> float | None:
    """1 or 0 by the reply's only kind of verdict; None where it has neither or both."""
    words = {word.lower() for word in _LAST_WORD.findall(reply)}
    return {frozenset({"yes"}): 1.0, frozenset({"no"}): 0.0}.get(frozenset(words))


class Judge:
    """Asks for verdicts; `costs` counts. Safe to use from several threads.

    `cache` is a folder of JSON lines, one file a model; only readable verdicts are
    kept, so that what failed is asked again.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        read: ReadVerdict = yes_or_no,
        cache: Path | None = None,
    ):
        if endpoint.concurrency < 1 or endpoint.attempts < 1:
            raise ValueError(
                "a judge needs at least 1 request at a time and 1 attempt, got "
                f"concurrency={endpoint.concurrency}, attempts={endpoint.attempts}."
            )
        self._endpoint = endpoint
        self._read = read
        self.costs = Costs()
        self._file = None
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
            name = re.sub(r"[^\w.-]", "_", endpoint.model)[:80]
            self._file = cache / f"{name}.jsonl"
        self._known = _read_cache(self._file)

    def verdicts(self, questions: Sequence[Sequence[Message]]) -> list[float]:
        """One number for each list of chat messages, NaN where there is none.

        Equal questions are asked once.
        """
        # Its own thread: the caller may already run an event loop, as notebooks do.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, self._all(questions)).result()

    async def _all(self, questions: Sequence[Sequence[Message]]) -> list[float]:
        begin = time.monotonic()
        bodies = [self._body(messages) for messages in questions]
        keys = [_key(body) for body in bodies]
        self.costs.asked += len(keys)
        todo = {k: b for k, b in zip(keys, bodies, strict=True) if k not in self._known}
        self.costs.from_cache += sum(key in self._known for key in keys)
        gate = asyncio.Semaphore(self._endpoint.concurrency)
        headers = {"Authorization": f"Bearer {self._endpoint.api_key}"}
        async with httpx.AsyncClient(
            timeout=self._endpoint.seconds,
            headers=headers if self._endpoint.api_key else None,
        ) as client:
            tasks = [
                asyncio.create_task(self._one(client, gate, key, body))
                for key, body in todo.items()
            ]
            if tasks:
                _, late = await asyncio.wait(
                    tasks, timeout=self._endpoint.budget_seconds
                )
                for task in late:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        self.costs.seconds += time.monotonic() - begin
        found = [self._known.get(key, math.nan) for key in keys]
        self.costs.unscored += sum(map(math.isnan, found))
        return found

    def _body(self, messages: Sequence[Message]) -> dict[str, Any]:
        return {
            "model": self._endpoint.model,
            "messages": [dict(message) for message in messages],
            "temperature": 0,
            "max_tokens": self._endpoint.max_tokens,
        }

    async def _one(
        self,
        client: httpx.AsyncClient,
        gate: asyncio.Semaphore,
        key: str,
        body: dict[str, Any],
    ) -> None:
        for attempt in range(self._endpoint.attempts):
            async with gate:
                verdict, wait, again = await self._attempt(client, body)
            if verdict is not None:
                self._keep(key, verdict)
            if verdict is not None or not again:
                return
            if attempt + 1 < self._endpoint.attempts:
                pause = self._endpoint.pause * 2**attempt * random.uniform(0.5, 1.5)
                await asyncio.sleep(max(pause, wait))

    async def _attempt(
        self, client: httpx.AsyncClient, body: dict[str, Any]
    ) -> tuple[float | None, float, bool]:
        """(verdict, seconds to wait, whether another attempt may help)."""
        self.costs.requests += 1
        try:
            # httpx limits each read; a server that drips bytes must end too.
            async with asyncio.timeout(self._endpoint.seconds):
                response = await _post(client, self._endpoint.url, body)
        except (httpx.HTTPError, TimeoutError, ValueError, httpx.InvalidURL):
            self.costs.failed_requests += 1
            return None, 0.0, True
        status, wait, content = response
        if status != 200:
            self.costs.failed_requests += 1
            return None, wait, status in _WORTH_A_RETRY
        reply = self._reply(content)
        verdict = None if reply is None else self._read(reply)
        if verdict is None or not math.isfinite(verdict):
            self.costs.unreadable += 1
            return None, 0.0, True
        return float(verdict), 0.0, False

    def _reply(self, content: bytes) -> str | None:
        """The message of a whole reply; None for garbage and for one that was cut."""
        try:
            found = json.loads(content)
            choice = found["choices"][0]
            text = choice["message"]["content"]
            usage = found.get("usage") or {}
            self.costs.prompt_tokens += int(usage.get("prompt_tokens", 0))
            self.costs.completion_tokens += int(usage.get("completion_tokens", 0))
            whole = choice.get("finish_reason") != "length"
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return None
        except RecursionError:
            return None
        return text if whole and isinstance(text, str) else None

    def _keep(self, key: str, verdict: float) -> None:
        self._known[key] = verdict
        if self._file is None:
            return
        line = json.dumps({"key": key, "verdict": verdict}) + "\n"
        # One short append: lines of several processes do not mix.
        descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


class AnswersQuestions(Protocol):
    """What a judge is to a reward: this one, or `vrl_jax.engine.judging.ModelJudge`."""

    def verdicts(self, questions: Sequence[Sequence[Message]]) -> list[float]:
        """One number for each list of chat messages, NaN where there is none."""


def judged(
    judge: AnswersQuestions, ask: Callable[[Episode], Sequence[Message]]
) -> Reward:
    """The judge's verdict on each response, of which `ask` makes a question."""
    return lambda episodes: judge.verdicts([ask(episode) for episode in episodes])


def same_answer(judge: AnswersQuestions, *, prompt: str = PROMPT) -> Reward:
    """1 where the judge finds the response's answer to be the row's, NaN unscored.

    `prompt` is formatted with `question`, `answer` and `response`.
    """
    return judged(judge, lambda e: [{"role": "user", "content": _filled(prompt, e)}])


def picture_part(image: bytes) -> Message:
    """An encoded picture as a part of a message's content."""
    url = "data:image/png;base64," + base64.b64encode(image).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def _filled(prompt: str, episode: Episode) -> str:
    values = {
        "question": episode.sample.question,
        "answer": episode.sample.answer,
        "response": episode.text,
    }
    # Not str.format: braces of the template or of a value must not be read.
    return re.sub(r"\{(question|answer|response)\}", lambda m: values[m[1]], prompt)


async def _post(
    client: httpx.AsyncClient, url: str, body: dict[str, Any]
) -> tuple[int, float, bytes]:
    address = url.rstrip("/") + "/chat/completions"
    async with client.stream("POST", address, json=body) as response:
        content = b""
        async for piece in response.aiter_bytes():
            content += piece
            if len(content) > MAX_REPLY:
                raise ValueError("the reply is too long")
        wait = 0.0
        with contextlib.suppress(ValueError):
            wait = min(float(response.headers.get("retry-after", 0)), 60.0)
        return response.status_code, max(wait, 0.0), content


def _key(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _read_cache(file: Path | None) -> dict[str, float]:
    """The verdicts on disk; a line that was cut by a crash is passed over."""
    known: dict[str, float] = {}
    if file is None or not file.exists():
        return known
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            known[str(row["key"])] = float(row["verdict"])
    return known
