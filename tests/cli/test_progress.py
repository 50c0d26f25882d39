"""Progress: a bar in a terminal, a line now and then elsewhere, nothing for short work."""

import io
import re
import time

from rich.console import Console

from isobit.cli.progress import Bar, Lines, watching


def test_short_work_says_nothing() -> None:
    stream = io.StringIO()
    with watching(Console(file=stream)) as watch:
        assert isinstance(watch, Lines)
        watch.stage("loading")
        watch("calibrating", 1, 2)
    assert stream.getvalue() == ""


def test_long_work_says_how_far_it_is() -> None:
    stream = io.StringIO()
    with Lines(Console(file=stream), quiet=0.1, every=0.2) as watch:
        watch.stage("exporting")
        time.sleep(0.3)
        for i in range(1, 11):
            watch("verifying", i, 10)
            time.sleep(0.05)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "exporting, 0 s so far"
    told = [line for line in lines if not line.startswith("exporting")]
    assert told
    assert all(re.fullmatch(r"verifying \d+/10, \d s left", line) for line in told)
    assert len(lines) < 11  # not one for each step


def test_the_time_left_is_that_of_the_steps_to_come() -> None:
    watch = Lines(Console(file=io.StringIO()))
    watch("verifying", 25, 100)
    assert watch._line(seconds=5.0) == "verifying 25/100, 15 s left"
    watch("reading", 7, None)
    assert watch._line(seconds=200.0) == "reading 7, 3 min 20 s so far"


def test_a_terminal_gets_one_bar_that_goes_away() -> None:
    stream = io.StringIO()
    with watching(Console(file=stream, force_terminal=True, width=80)) as watch:
        assert isinstance(watch, Bar)
        watch.stage("loading")
        for i in range(4):
            watch("calibrating", i, 4)
            time.sleep(0.15)
    text = stream.getvalue()
    assert re.search(r"calibrating.*3/4, \d+ s", text)
    assert "\x1b[2K" in text[-20:]  # the line is erased at the end
