"""Verbs that show a trained model new volumes."""

from __future__ import annotations

import argparse
import re
import time
from typing import Any

from vol3d.commands.command import Command, Result, add_device, add_reading, at_least, trained_model


def _of_image(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", metavar="MODEL", help="folder of a saved model")
    verb.add_argument("image", metavar="IMAGE", help="NIfTI, NRRD, MHA/MHD, or a folder or zip of DICOM files")
    _add_volume(verb)
    add_device(verb)


def _add_volume(verb: argparse.ArgumentParser) -> None:
    """How a single volume is read, as `vol3d.read` has it."""
    verb.add_argument("--series", help="which of a folder's series: UID, number or description")
    verb.add_argument("--modality", help="what it is where it is no CT in HU (MR, PT); CT vouches for its values")
    verb.add_argument("--irregular", choices=["resample"], help="interpolate uneven DICOM slices, else refused")


def _chosen(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("series", "modality", "irregular")}


_ARGUMENT = re.compile(r"\b(series|modality|irregular)= ?")
"""What a reader's message tells a caller in Python to pass."""


def _read(arguments: argparse.Namespace, path: str) -> Any:
    from vol3d.volume.read import read

    try:
        return read(path, **_chosen(arguments))
    except ValueError as error:
        raise ValueError(_ARGUMENT.sub(r"--\1 ", str(error))) from error


def _report(arguments: argparse.Namespace) -> Result:
    from pathlib import Path

    from vol3d.text.sections import split_organs, split_report

    start = time.perf_counter()
    model = trained_model(arguments)
    text = model.report(_read(arguments, arguments.image))
    parts = split_report(text)
    data = {
        "study": Path(arguments.image).name,
        "findings": parts.findings,
        "impression": parts.impression,
        "sections": split_organs(parts.findings or text),
        "seconds": round(time.perf_counter() - start, 2),
        "grid": model.grid.to_dict(),
    }
    return Result(data, text)


def _ask_arguments(verb: argparse.ArgumentParser) -> None:
    _of_image(verb)
    verb.add_argument("question", metavar="QUESTION")
    verb.add_argument("--choices", action="extend", nargs="+", metavar="CHOICE", help="answer with one of these")


def _ask(arguments: argparse.Namespace) -> Result:
    volume = _read(arguments, arguments.image)
    answer = trained_model(arguments).ask(volume, arguments.question, arguments.choices)
    return Result({"question": arguments.question, "choices": arguments.choices, "answer": answer}, answer)


def _segment_arguments(verb: argparse.ArgumentParser) -> None:
    _of_image(verb)
    verb.add_argument("prompt", metavar="PROMPT", help="what to outline: an organ, a finding, a phrase")
    verb.add_argument("-o", "--out", required=True, metavar="OUT", help="mask to write: .nii.gz, .nrrd or .mha")


def _segment(arguments: argparse.Namespace) -> Result:
    import numpy as np

    from vol3d.volume.export import check_suffix, write

    check_suffix(arguments.out)
    mask = trained_model(arguments).segment(_read(arguments, arguments.image), arguments.prompt)
    write(mask, arguments.out)
    voxels = int((mask > 0).sum())
    volume_ml = voxels * float(abs(np.linalg.det(mask.affine.numpy()[:3, :3]))) / 1000
    data = {"prompt": arguments.prompt, "mask": str(arguments.out), "voxels": voxels, "volume_ml": round(volume_ml, 3)}
    found = f"{volume_ml:.1f} ml" if voxels else "not present"
    return Result(data, f"{arguments.prompt}: {found}, {arguments.out}")


def _codes_arguments(verb: argparse.ArgumentParser) -> None:
    _of_image(verb)
    verb.add_argument(
        "-k", type=at_least(1), default=10, metavar="K", help="how many to show (default: 10; --json has all)"
    )


def _codes(arguments: argparse.Namespace) -> Result:
    found = trained_model(arguments).codes(_read(arguments, arguments.image))
    lines = [f"{probability:.3f}  {code}" for code, probability in list(found.items())[: arguments.k]]
    return Result({"codes": found}, "\n".join(lines))


def _embed_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", metavar="MODEL", help="folder of a saved model")
    verb.add_argument("manifest", metavar="MANIFEST")
    verb.add_argument("-o", "--out", required=True, metavar="INDEX", help="folder to write")
    verb.add_argument("--batch-size", type=at_least(1), default=8, metavar="N")
    add_device(verb)
    add_reading(verb)


def _embed(arguments: argparse.Namespace) -> Result:
    from vol3d.model.index import embed

    pace = {"batch_size": arguments.batch_size, "workers": arguments.workers}
    index = embed(trained_model(arguments), arguments.manifest, arguments.out, **pace, progress=True)
    data = {"index": str(arguments.out), "studies": len(index), "dim": index.dim}
    return Result(data, f"{len(index)} studies, {index.dim} numbers each: {arguments.out}")


def _search_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("index", metavar="INDEX", help="folder that `vol3d embed` wrote")
    verb.add_argument("query", metavar="IMAGE_OR_TEXT", help="a volume's path, or words")
    verb.add_argument("-k", type=at_least(1), default=10, metavar="K")
    _add_volume(verb)
    add_device(verb)


def _search(arguments: argparse.Namespace) -> Result:
    from vol3d.model.index import is_image, search

    query: Any = arguments.query
    if is_image(query):
        query = _read(arguments, query)
    elif told := [f"--{name}" for name, value in _chosen(arguments).items() if value is not None]:
        raise ValueError(f"{query!r} is no file or folder, and {', '.join(told)} says how one is read: leave it out")
    hits = search(arguments.index, query, arguments.k, device=arguments.device)
    lines = [f"{hit['score']:.3f}  {hit['study']}" for hit in hits]
    return Result({"query": arguments.query, "hits": hits}, "\n".join(lines))


COMMANDS = {
    "report": Command(
        "write the report of one CT", "vol3d report runs/demo/model ct.nii.gz --json", _of_image, _report
    ),
    "ask": Command(
        "answer a question about one CT",
        'vol3d ask runs/vqa/model ct.nii.gz "Is there a pleural effusion?" --choices yes no',
        _ask_arguments,
        _ask,
    ),
    "segment": Command(
        "outline what a prompt names",
        "vol3d segment runs/segmentation/model ct.nii.gz spleen -o spleen.nii.gz",
        _segment_arguments,
        _segment,
    ),
    "codes": Command(
        "diagnosis codes of one CT, with probabilities",
        "vol3d codes runs/codes/model ct.nii.gz -k 5",
        _codes_arguments,
        _codes,
    ),
    "embed": Command(
        "index a manifest's volumes for search",
        "vol3d embed runs/retrieval/model data/manifest.jsonl -o index",
        _embed_arguments,
        _embed,
    ),
    "search": Command(
        "the indexed studies nearest to a volume or to words",
        'vol3d search index "large left pleural effusion" -k 5',
        _search_arguments,
        _search,
    ),
}
