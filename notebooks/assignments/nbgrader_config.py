"""The course, for nbgrader: run its commands in this directory."""

from nbgrader.preprocessors import (
    AssignLatePenalties,
    CheckCellMetadata,
    ClearOutput,
    DeduplicateIds,
    IgnorePattern,
    LimitOutput,
    OverwriteCells,
    OverwriteKernelspec,
    SaveAutoGrades,
)
from tinyprune.course.marking import DailyPenalty, IsolatedExecute, RestoreCells

c = get_config()  # noqa: F821 (nbgrader has it)

c.CourseDirectory.course_id = "tinyprune"

# nbgrader's own steps, with RestoreCells added and IsolatedExecute instead of Execute: what is
# marked is this course's notebook with the student's answers in it, and answers run in a separate
# process, away from the tests.
c.Autograde.sanitize_preprocessors = [
    ClearOutput,
    RestoreCells,
    DeduplicateIds,
    OverwriteKernelspec,
    OverwriteCells,
    CheckCellMetadata,
]
c.Autograde.autograde_preprocessors = [
    IsolatedExecute,
    IgnorePattern,
    LimitOutput,
    SaveAutoGrades,
    AssignLatePenalties,
    CheckCellMetadata,
]

# resources of one submission
c.IsolatedExecute.seconds_per_call = 10
c.IsolatedExecute.seconds_in_all = 120
c.IsolatedExecute.memory_megabytes = 3072

# late work: an hour of grace, a tenth of the score for each day begun, nothing after five days
c.AssignLatePenalties.plugin_class = DailyPenalty
c.DailyPenalty.grace_hours = 1
c.DailyPenalty.share_per_day = 0.1
c.DailyPenalty.days = 5

# Moodle's names in an archive: "Ada Byron_1234_assignsubmission_file_/a1.ipynb"; the student is
# "Ada Byron_1234", since two may have one name
c.FileNameCollectorPlugin.named_regexp = (
    r".*/(?P<student_id>[^/]+_\d+)_assignsubmission_file[_/]+(?P<file_id>[^/]+)$"
)

# only notebooks are handed in: other files beside them are neither copied nor read
c.CourseDirectory.include = ["*.ipynb"]
