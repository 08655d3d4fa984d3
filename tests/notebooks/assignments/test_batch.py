"""nbgrader marks 300 submissions, one after the other."""

import subprocess
import sys
import time
from collections import Counter

import pytest
from marks import build, edited, wrong_answers
from test_nbgrader import hand_in, label, new_course, scores

STUDENTS = 300
MINUTES = 30


@pytest.mark.batch
def test_three_hundred_submissions_in_half_an_hour(tmp_path, capsys):
    """Right, wrong and empty answers in turn; the time, for two cores, is printed."""
    course = new_course(tmp_path)
    subprocess.run([sys.executable, "-m", "nbgrader", "generate_assignment", "a1"], cwd=course, check=True)
    reference = build.notebook_of("a1")
    kinds = {"right": reference, "empty": build.released(reference)}
    kinds |= {label(wrong.what): edited(build.notebook_of("a1"), wrong) for wrong in wrong_answers("a1")}
    names = list(kinds)
    for student in range(STUDENTS):
        hand_in(course, f"s{student:03}", kinds[names[student % len(names)]])
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "nbgrader", "autograde", "a1"], cwd=course, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    with capsys.disabled():
        print(f"\n{STUDENTS} submissions of a1 in {seconds:.0f} s")
    assert seconds < 60 * MINUTES
    points = Counter(sum(scores(course, f"s{student:03}").values()) for student in range(STUDENTS))
    assert points.total() == STUDENTS
    assert points[30.0] == sum(names[student % len(names)] == "right" for student in range(STUDENTS))
    assert points[0.0] == sum(names[student % len(names)] == "empty" for student in range(STUDENTS))
