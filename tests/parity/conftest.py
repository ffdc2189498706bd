"""Collects the errors that the comparisons measure, and prints them as a table."""

import pytest

ERRORS: dict[tuple[str, str], tuple[float, float]] = {}


@pytest.fixture
def record_error():
    def record(family: str, check: str, error: float, bound: float) -> None:
        worst, _ = ERRORS.get((family, check), (0.0, bound))
        ERRORS[family, check] = max(worst, error), bound

    return record


def pytest_terminal_summary(terminalreporter):
    if ERRORS:
        terminalreporter.write_sep("=", "largest errors against transformers")
        for line in table(ERRORS):
            terminalreporter.write_line(line)


def table(errors: dict[tuple[str, str], tuple[float, float]]) -> list[str]:
    """A line a check, a column a family; `!` marks what is past its bound."""
    families = list(dict.fromkeys(family for family, _ in errors))
    checks = list(dict.fromkeys(check for _, check in errors))
    lines = [f"{'check':18}{'bound':>10}" + "".join(f"{f:>14}" for f in families)]
    for check in checks:
        cells = {f: errors[f, check] for f in families if (f, check) in errors}
        bound = next(iter(cells.values()))[1]
        shown = [
            f"{cells[f][0]:.1e}{' !' if cells[f][0] > bound else ''}"
            if f in cells
            else "-"
            for f in families
        ]
        lines.append(f"{check:18}{bound:>10.0e}" + "".join(f"{s:>14}" for s in shown))
    return lines
