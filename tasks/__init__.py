"""Tasks: each a head, a loss and a prediction around the shared model, one a file."""

if __name__ != "vol3d.tasks":
    raise ImportError("import vol3d.tasks, not the folder tasks")

from vol3d.tasks.finding_maps import FindingMaps
from vol3d.tasks.finding_queries import FindingQueries
from vol3d.tasks.report_generation import ReportGeneration

__all__ = ["FindingMaps", "FindingQueries", "ReportGeneration"]
