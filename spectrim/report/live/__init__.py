"""The live report page: a local server that plans any size, or writes text at any size."""

from spectrim.report.live.elastic import ElasticSession
from spectrim.report.live.job import Job, JobState
from spectrim.report.live.server import Access, make_server
from spectrim.report.live.session import Places, Session

__all__ = ["Access", "ElasticSession", "Job", "JobState", "Places", "Session", "make_server"]
