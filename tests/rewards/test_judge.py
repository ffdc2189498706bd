"""Against a real server on this machine that misbehaves in every way we know."""

import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vrl_jax.rewards.combine import call_safely
from vrl_jax.rewards.judge import Endpoint, Judge, same_answer, yes_or_no
from vrl_jax.types import Episode, Sample, Turn


class Server(ThreadingHTTPServer):
    """Does what the question says; counts requests, and how many ran at once."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.counts, self.running, self.most, self.heads = {}, 0, 0, []

    def handle_error(self, request, client_address):
        """Clients hang up on what stalls: no news."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][0]["content"]
        with server.lock:
            server.running += 1
            server.most = max(server.most, server.running)
            server.heads.append((self.path, self.headers["Authorization"]))
            number = server.counts[question] = server.counts.get(question, 0) + 1
        try:
            self.behave(question, number)
        finally:
            with server.lock:
                server.running -= 1

    def behave(self, question, number):
        first = number == 1
        if "stall" in question:
            time.sleep(3)
        if "slow" in question:
            time.sleep(0.1)
        if "missing" in question:
            return self.send(404, b"no such model")
        if "down" in question or ("flaky" in question and first):
            return self.send(503, b"busy", retry_after="0.01")
        if "garbage" in question:
            return self.send(200, b"\xff\xfe<html>")
        if "shape" in question:
            return self.send(200, b'{"choices": [{"message": null}]}')
        if "deep" in question:
            return self.send(200, b"[" * 100_000)
        if "huge" in question:
            return self.send(200, b"x" * (3 << 20))
        if "half" in question and first:
            return self.send(200, self.reply("yes")[:40], claimed=4000)
        if "hangup" in question and first:
            return self.close_connection or None
        if "cut" in question:
            return self.send(200, self.reply("yes", finish="length"))
        if "unsure" in question:
            return self.send(200, self.reply("yes and no"))
        self.send(200, self.reply("No." if "wrong" in question else "Yes."))

    def reply(self, text, finish="stop"):
        return json.dumps(
            {
                "choices": [{"message": {"content": text}, "finish_reason": finish}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 2},
            }
        ).encode()

    def send(self, status, content, claimed=None, retry_after=None):
        self.send_response(status)
        self.send_header("Content-Length", str(claimed or len(content)))
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def endpoint(server, **changes):
    settings = {"seconds": 1.0, "attempts": 3, "pause": 0.01, "concurrency": 4}
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    return Endpoint(url, "judge/1", **{**settings, **changes})


def ask(judge, *questions):
    return judge.verdicts([[{"role": "user", "content": q}] for q in questions])


def test_nothing_is_lost_and_no_verdict_is_made_up(server):
    judge = Judge(endpoint(server))
    hopeless = ("down", "garbage", "shape", "deep", "huge", "cut", "unsure", "missing")
    good = ("right", "wrong", "flaky", "half", "hangup", "flaky wrong")
    found = dict(zip(hopeless + good, ask(judge, *hopeless, *good), strict=True))
    assert all(math.isnan(found[question]) for question in hopeless)
    assert [found[question] for question in good] == [1, 0, 1, 1, 1, 0]
    costs = judge.costs
    assert (costs.asked, costs.unscored) == (14, 8)
    # 3 attempts each but for the 404, which no repetition mends; 2 for what mends.
    assert costs.requests == sum(server.counts.values()) == 7 * 3 + 1 + 2 * 1 + 4 * 2
    assert costs.completion_tokens >= 2 * 6 and costs.unreadable == 5 * 3


def test_the_time_budget_ends_what_stalls(server):
    judge = Judge(endpoint(server, seconds=30.0, budget_seconds=0.5))
    begin = time.monotonic()
    stalled, quick = ask(judge, "stall", "right")
    assert math.isnan(stalled) and quick == 1.0
    assert time.monotonic() - begin < 2.5


def test_a_request_that_stalls_is_given_up(server):
    judge = Judge(endpoint(server, seconds=0.2, attempts=1))
    assert math.isnan(ask(judge, "stall")[0]) and judge.costs.failed_requests == 1


def test_at_most_so_many_requests_at_once(server):
    judge = Judge(endpoint(server, concurrency=3))
    assert ask(judge, *[f"slow {i}" for i in range(9)]) == [1.0] * 9
    assert server.most == 3


def test_verdicts_are_kept_on_disk_and_asked_once(server, tmp_path):
    judge = Judge(endpoint(server), cache=tmp_path / "cache")
    assert ask(judge, "right", "right", "wrong") == [1, 1, 0]
    assert math.isnan(ask(judge, "garbage")[0])
    [file] = (tmp_path / "cache").iterdir()
    with file.open("a") as lines:
        lines.write('{"key": "torn')
    again = Judge(endpoint(server), cache=tmp_path / "cache")
    assert ask(again, "wrong", "right") == [0, 1]
    assert (again.costs.requests, again.costs.from_cache) == (0, 2)
    assert server.counts["right"] == server.counts["wrong"] == 1
    ask(again, "garbage")
    assert server.counts["garbage"] == 6  # a failure is not kept
    other = Judge(
        endpoint(server, max_tokens=5), cache=tmp_path / "cache"
    )  # another question
    ask(other, "right")
    assert server.counts["right"] == 2


def test_nobody_listens():
    judge = Judge(
        Endpoint("http://127.0.0.1:9/v1", "x", seconds=1, attempts=2, pause=0.01)
    )
    assert math.isnan(ask(judge, "?")[0]) and judge.costs.failed_requests == 2
    assert math.isnan(ask(Judge(Endpoint("not a url", "x", attempts=1)), "?")[0])


def test_same_answer_leaves_a_response_unscored(server):
    sample = Sample("1", "test", "How many?", (), "{response} 3")
    texts = ("{question} right", "wrong", "garbage")
    group = [Episode(sample, "?", (Turn(t, ()),), True) for t in texts]
    reward = same_answer(Judge(endpoint(server, api_key="secret")))
    scores = call_safely(reward, group)
    assert [score["unscored"] for score in scores] == [0, 0, 1]
    assert [score["overall"] for score in scores[:2]] == [1, 0]
    asked = next(question for question in server.counts if "right" in question)
    assert "Reference answer: {response} 3" in asked and "{question} right" in asked
    assert set(server.heads) == {("/v1/chat/completions", "Bearer secret")}
    assert "secret" not in repr(endpoint(server, api_key="secret"))


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [("Yes", 1), ("**no**", 0), ("I know", None), ("", None), ("yes. no.", None)],
)
def test_yes_or_no(reply, verdict):
    assert yes_or_no(reply) == verdict


def test_a_judge_needs_an_attempt():
    with pytest.raises(ValueError, match="got concurrency=0"):
        Judge(Endpoint("http://127.0.0.1:9", "x", concurrency=0))
