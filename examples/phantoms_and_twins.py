"""Synthetic CTs whose truth is known to the voxel, and twins that differ in exactly one finding.

python examples/phantoms_and_twins.py
"""

import numpy as np

from vol3d import phantom

print(f"{len(phantom.FINDINGS)} kinds of finding: {', '.join(phantom.FINDINGS)}\n")

# A seed names the patient: the same seed gives the same voxels and the same words, everywhere.
study = phantom.make(4, shape=(96, 96, 64), findings=["pleural effusion", "hydronephrosis", "ascites"], prevalence=0.5)
print(f"{study.meta['sex']}, {study.meta['age']} years, {study.hu.shape} voxels, up to {study.hu.max()} HU")
print(study.report.text)

for finding in study.findings:
    voxels = int(study.masks[finding.key].sum())
    print(f"{finding.key}: {voxels} voxels, {finding.type.icd10cm}")

# The same patient with one finding on the other side: every other voxel and every other sentence stays.
twin = study.twin("swap")
changed = int(np.sum(twin.hu != study.hu))
print(f"\ntwin whose {twin.meta['changed']} is on the other side: {changed} voxels differ, and these lines:")
before, after = study.report.text.splitlines(), twin.report.text.splitlines()
for line in before:
    if line not in after:
        print(f"- {line}")
for line in after:
    if line not in before:
        print(f"+ {line}")
