import json
import os
import random
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


FORMULAS = [
    "5", "05", "-0", ".5", "5.", "-1.50", "1,000", "0,5", "1 000", "12" * 20,
    "3.14159265358979323846", "1/3", "-2/4", "1/0", r"\frac{-3}{6}", r"\frac{1}{0}",
    r"\frac12", r"\dfrac{1}{2}", r"2\frac{1}{3}", "x=5", "x \\approx 3", "x=1=y", "5%",
    r"5\%", "5 cm", "10^{3}", "2^{-1}", "1e3", r"\sqrt{7}", r"3\sqrt{0.5}", r"\pi r^2",
    "x^{2}-3x", "(1, 2)", "[1, 2)", r"\{1, 2\}", "2:1", "12:30", "1<x<2", r"\infty",
    "i", "2i+1", r"\text{yes}", "A", "", "{", "}", r"\frac{", "x_{1}", "5!", "|x|",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\int_0^1 x dx", "1 and 2", "\u0663",
]  # fmt: skip


def test_quick_reading_reads_what_math_verify_reads(tmp_path):
    """Formulas, and 150 random rows of pieces of them: the same sympy, or failure."""
    draw = random.Random(0)
    pieces = [*FORMULAS, "+", "-", "=", ",", " ", "^", "(", ")", r"\cdot ", "x", "7"]
    rows = ["".join(draw.choices(pieces, k=draw.randint(1, 5))) for _ in range(150)]
    script = f"""
import json, logging, sys
logging.disable(30)
sys.path.insert(0, {os.path.dirname(math_worker.__file__)!r})
import math_worker
from sympy import srepr

def reading(text):
    math_worker._parsed.cache_clear()
    return [x if isinstance(x, str) else srepr(x) for x in math_worker._parsed(text)]

texts = [rf"\\boxed{{{{{{text}}}}}}" for text in json.load(open(sys.argv[1]))]
plain = [reading(text) for text in texts]
math_worker.hasten()
for text, wanted in zip(texts, plain):
    if reading(text) != wanted:
        print(text, wanted, reading(text))
print(len(texts), sum(map(bool, plain)))
"""
    file = tmp_path / "formulas.json"
    file.write_text(json.dumps(FORMULAS + rows))
    command = [sys.executable, "-P", "-c", script, str(file)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    read, found = map(int, said.split())  # nothing else was printed
    assert read == len(FORMULAS + rows) and found > read / 2


def test_check_compares_equal_pairs_once(verifier, monkeypatch):
    asked = []
    ask = math_verifier._ask
    monkeypatch.setattr(
        math_verifier, "_ask", lambda w, lines: asked.extend(lines) or ask(w, lines)
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
        verdicts = pool.check([("2", "2"), (TOWER, "3"), ("3", "3"), ("4", "5")])
        late = Verdict(False, "time-out")
        assert verdicts == [Verdict(True), late, Verdict(True), Verdict(False)]
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
