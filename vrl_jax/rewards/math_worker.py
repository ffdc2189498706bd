"""One process that compares answers with math-verify: a JSON pair in, a verdict out.

Started as a script by `math_verifier`, and so imports nothing of this library. It
asks the kernel to end it when one comparison outlasts the limit: that also stops
code that never comes back to the interpreter, and leaves nothing running when the
parent has died.
"""

import json
import logging
import os
import resource
import signal
import sys

from math_verify import parse, verify

MEMORY_BYTES = 4 << 30  # a tower of powers would take all there is


def math_verify_equal(prediction: str, gold: str) -> tuple[bool, str]:
    """Whether math-verify finds the two equal, and why it could not tell if so.

    Both are parsed with the library's defaults, as whole texts: boxes and dollars
    first, then bare numbers. A gold answer that does not parse equals nothing.
    https://github.com/huggingface/Math-Verify
    """
    expected = parse(gold, parsing_timeout=None)
    if not expected:
        return False, "gold does not parse"
    found = parse(prediction, parsing_timeout=None)
    return bool(verify(expected, found, timeout_seconds=None)), ""


def main() -> None:
    """Answers lines of standard input until it ends."""
    limit = float(sys.argv[1])
    resource.setrlimit(
        resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1])
    )
    # math-verify warns that its own time-outs, alarm handlers in Python, are off.
    logging.disable(logging.WARNING)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a parser prints is not a reply
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            reply = math_verify_equal(*json.loads(line))
        except Exception as error:
            reply = (False, f"{type(error).__name__}: {error}")
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
