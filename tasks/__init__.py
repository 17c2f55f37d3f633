"""Tasks: each a head, a loss and a prediction around the shared model, one a file."""

if __name__ != "vol3d.tasks":
    raise ImportError("import vol3d.tasks, not the folder tasks")

from vol3d.tasks.ehr_codes import EHRCodes
from vol3d.tasks.finding_maps import FindingMaps
from vol3d.tasks.finding_queries import FindingQueries
from vol3d.tasks.findings_impression import FindingsThenImpression
from vol3d.tasks.grounding import Grounding
from vol3d.tasks.masked_volume import MaskedVolume
from vol3d.tasks.organ_reports import OrganReports
from vol3d.tasks.outcomes import Outcomes
from vol3d.tasks.prompt_segmentation import PromptSegmentation
from vol3d.tasks.regions import Regions
from vol3d.tasks.report_generation import ReportGeneration
from vol3d.tasks.retrieval import Retrieval
from vol3d.tasks.structured_report import StructuredReport
from vol3d.tasks.vqa import VQA
from vol3d.tasks.zero_shot import ZeroShot

__all__ = [
    "VQA",
    "EHRCodes",
    "FindingMaps",
    "FindingQueries",
    "FindingsThenImpression",
    "Grounding",
    "MaskedVolume",
    "OrganReports",
    "Outcomes",
    "PromptSegmentation",
    "Regions",
    "ReportGeneration",
    "Retrieval",
    "StructuredReport",
    "ZeroShot",
]
