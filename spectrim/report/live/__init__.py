"""The live report page: a local server that plans any size, and compresses on demand."""

from spectrim.report.live.job import Job, JobState
from spectrim.report.live.server import Access, make_server
from spectrim.report.live.session import Places, Session

__all__ = ["Access", "Job", "JobState", "Places", "Session", "make_server"]
