"""Maps the root folders encoders, tasks and recipes into the package; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

BESIDE = ("encoders", "tasks", "recipes")
packages = ["vol3d"] + [f"vol3d.{name}" for name in find_packages("vol3d") if name.split(".")[0] not in BESIDE]
package_dir = {"vol3d": "vol3d"}
for folder in BESIDE:
    package_dir[f"vol3d.{folder}"] = folder
    packages += [f"vol3d.{folder}"] + [f"vol3d.{folder}.{name}" for name in find_packages(folder)]

setup(packages=packages, package_dir=package_dir)
