"""A pytest plugin (`-p no_skips`) for the tests that CI runs apart: what they need is there, so a skipped one fails."""

import pytest


def pytest_sessionfinish(session: pytest.Session) -> None:
    report = session.config.pluginmanager.get_plugin("terminalreporter")
    if skipped := report.stats.get("skipped"):
        report.ensure_newline()
        report.write_line(f"{len(skipped)} skipped, none may be: {skipped[0].longrepr[2]}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
