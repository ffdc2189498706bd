import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vrl_jax.rewards import math_verifier, math_worker
from vrl_jax.rewards.math_verifier import MathVerifier, Verdict

TOWER = r"\boxed{9^{9^{9^{9}}}}"  # sympy would work on it for ever


def test_check_says_where_gold_does_not_parse(verifier):
    assert verifier.check([("3", "a word")]) == [Verdict(False, "gold does not parse")]


def test_a_look_at_the_numbers_agrees_with_math_verify():
    texts = [
        "2", "2.0", "-2", r"\frac{4}{2}", r"\sqrt{2}", "1.414214", "1.4142", "200",
        r"2\\%", "x+2", "(2, 2)", r"\{2\\}", "2:1", "1,000", r"10^3", "i", r"\infty",
        r"\pi", "x=2", "1/0",
    ]  # fmt: skip
    boxes = [rf"\boxed{{{text}}}" for text in texts]
    script = f"""
import json, logging, sys
logging.disable(30)
sys.path.insert(0, {os.path.dirname(math_worker.__file__)!r})
from math_worker import math_verify_equal, parse, verify
boxes = json.loads(sys.argv[1])
for gold in boxes:
    for box in boxes:
        expected = parse(gold, parsing_timeout=None)
        found = parse(box, parsing_timeout=None)
        plain = bool(expected) and bool(verify(expected, found, timeout_seconds=None))
        try:
            ours = math_verify_equal(box, gold)[0]
        except (OverflowError, ValueError, TypeError):
            ours = None
        if ours != plain:
            print(box, gold, plain, ours)
"""
    command = [sys.executable, "-P", "-c", script, json.dumps(boxes)]
    assert subprocess.run(command, check=True, capture_output=True).stdout == b""


def test_check_compares_equal_pairs_once(verifier, monkeypatch):
    asked = []
    ask = math_verifier._ask
    monkeypatch.setattr(
        math_verifier, "_ask", lambda w, line: asked.append(line) or ask(w, line)
    )
    verdicts = verifier.check([("1", "1"), ("2", "1"), ("1", "1")])
    assert [verdict.equal for verdict in verdicts] == [True, False, True]
    assert len(asked) == 2


def test_check_works_in_a_thread(verifier):
    found = []
    thread = threading.Thread(
        target=lambda: found.extend(verifier.check([("0.5", "$\\frac12$")]))
    )
    thread.start()
    thread.join()
    assert found == [Verdict(True)]


def test_a_hanging_comparison_costs_its_own_answer_only():
    with MathVerifier(workers=1, seconds=1) as pool:
        pool.check([("1", "1")])
        begin = time.monotonic()
        verdicts = pool.check([(TOWER, "3"), ("3", "3")])
        assert verdicts == [Verdict(False, "time-out"), Verdict(True)]
        assert time.monotonic() - begin < 10  # 1 s, a new process, a busy machine


def test_a_killed_worker_costs_its_own_answer_only(monkeypatch):
    started = []
    start = math_verifier._start
    monkeypatch.setattr(
        math_verifier,
        "_start",
        lambda *limits: started.append(start(*limits)) or started[-1],
    )
    with MathVerifier(workers=1, seconds=30) as pool:
        pool.check([("1", "1")])
        os.kill(started[0].pid, signal.SIGKILL)
        started[0].wait()
        verdicts = pool.check([("1", "1"), ("2", "2")])
        assert verdicts == [Verdict(False, "crash (-9)"), Verdict(True)]
    assert len(started) == 2
    assert all(worker.poll() is not None for worker in started)  # none left behind


@pytest.mark.parametrize(
    "answer",
    [
        "(" * 5000 + "1" + ")" * 5000,  # 10 000 characters, nested
        "+".join(["(x+1)"] * 2000),
        r"\frac{1}{" * 1000 + "2" + "}" * 1000,
        "10^{10^{10}}",
        "2^{2^{2^{2^{2^{2}}}}}",
        "x^{99999999} - 1",
        "10000000!",
        "\\" * 10_000,
        "1," * 3000,
        "9" * 10_000,
        "$" * 9_999,
        "a" * 30_000,
    ],
    ids=lambda answer: answer[:12],
)
def test_an_expression_made_to_hurt_costs_a_second_and_its_own_answer(strict, answer):
    begin = time.monotonic()
    verdicts = strict.check([(rf"\boxed{{{answer}}}", r"\boxed{7}"), ("7", "7")])
    verdicts += strict.differences_are_zero([(answer, "7"), ("7", "7")])
    assert time.monotonic() - begin < 15  # 2 s, two new processes, a busy machine
    assert [v.equal for v in verdicts] == [False, True, False, True]


@pytest.fixture(scope="module")
def strict():
    with MathVerifier(workers=1, seconds=1, megabytes=1024) as pool:
        yield pool


def test_memory_is_limited_and_running_out_costs_one_answer(monkeypatch):
    started = []
    start = math_verifier._start
    monkeypatch.setattr(
        math_verifier,
        "_start",
        lambda *limits: started.append(start(*limits)) or started[-1],
    )
    with MathVerifier(workers=1, seconds=20, megabytes=1024) as pool:
        pool.check([("1", "1")])
        pid = started[0].pid
        limit, _ = resource.prlimit(pid, resource.RLIMIT_AS)
        assert limit == 1024 << 20
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        now = pages * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (now, limit))  # none is left
        [verdict] = pool.check([("10^{3000000}", "7")])
        assert not verdict.equal
        if started[-1].poll() is None:
            resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
        assert pool.check([("7", "7")]) == [Verdict(True)]


def test_workers_import_neither_this_library_nor_jax():
    probe = (
        "import runpy, sys; runpy.run_path(sys.argv[1]); "
        "assert not {'jax', 'vrl_jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", probe, math_worker.__file__], check=True)


def test_math_verifier_needs_a_worker_and_a_limit():
    with pytest.raises(ValueError, match="at least 1 worker"):
        MathVerifier(workers=0)
