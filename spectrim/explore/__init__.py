"""The report page, live: a local server that plans any size, and compresses on demand."""

from spectrim.explore.job import Job, JobState
from spectrim.explore.server import Access, make_server
from spectrim.explore.session import Places, Session

__all__ = ["Access", "Job", "JobState", "Places", "Session", "make_server"]
