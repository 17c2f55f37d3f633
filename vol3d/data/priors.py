"""Earlier exams: the report of the study that a row's `prior` names, laid into the row itself."""

from __future__ import annotations

from dataclasses import replace

from vol3d.data.manifest import Manifest


def with_prior_reports(manifest: Manifest) -> Manifest:
    """The manifest with `meta.prior_report` in every study whose prior stands in it and has a report.

    A row that already gives `meta.prior_report` keeps it. The tasks read it where they are built with `prior=True`.
    `VolumeData` and `evaluate` do this to every manifest they are given.

    Args:
        manifest: the whole one: a prior may stand in no split.
    """
    if not any(study.prior for study in manifest):
        return manifest
    studies = []
    for study in manifest:
        earlier = manifest[study.prior] if study.prior is not None and study.prior in manifest else None
        if earlier is not None and earlier.report and "prior_report" not in study.meta:
            study = replace(study, meta={**study.meta, "prior_report": str(earlier.report)})
        studies.append(study)
    return Manifest(studies, manifest.path)
