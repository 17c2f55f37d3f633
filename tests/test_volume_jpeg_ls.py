"""JPEG-LS slices, made once with CharLS (pyjpegls 1.5.1), decoded with and without pydicom's plugins."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLSLossless, JPEGLSNearLossless
from volume_files import dicom_slice, save_dicom

from vol3d.volume.read import read

STREAMS = {
    JPEGLSLossless: (
        """/9j/9wALCwAYACABAREA/9oACAEBAAAAAC+CEIiIkkkkqqqqqoEMMiGdEbpG6RukbpPyfk/J+TBFFDBCMImETEWJYliWSyWKEkFihwhgAAAA
        Hst+Ftt1e+AAAAAHeEcBjgMcBjlp+T8ngAAAAHvksEIRERAAAAAAd2gAAAAHeGX5fl+WEuXAAAAAD5COSSSSgAAAAAd0gAAAAHccuXLlEDOBm
        AAAAAfSRqqqqAAAAAB24B15wM4Gc6/Lx28ar/wLUFr5fl+WK6AI/3/iAOuuogZwMEP/fxAHAzgZ3X5YDQf/f4gPl+X5YroAj/98gHXXUg3BhH
        //ZAODcG7r8sCQf/95AuX5flldAJ//eQXXXUg3BhP/fyA4NwbuvywIAAOQAAAAA/k//wAAAAB4ZHn82nK6gAAAAA/hAd//eAATsjnOpBsGwCA
        AAAAftj0f/AAK+GDYNg27abTgIByh4/9AUOFNptNpy7sPkQDAMCQDAMCQDhJ3d6QbBsGw2Gw8PDw8P7abTabTabTabTabTl3d3d3d4P/Z""",
        """/9j/9wALCwAYACABAREA/9oACAEBAAAAADGCEIiIkkkkqqqqqoEMkCGUUYlGJRioyplTKmVMqYJJIYooYQjCEYiYiYiYiZJkmOFstlsoAAAA
        B6rfhbbdXvgAAAAB3FLByw5Ycgpmm02AAAAAe1SwQhEREAAAAAB2+AAAAAdvLa2trCQbINkEAAAAA+AjkkkkoAAAAAHawHPg2g2g2McOcOxyc
        aqqqgLLFj3DuHQra2OljVf+BYwsVbW1ig9BgFL/f8QEoPQeY47jgj//eIOO46K2tFH/f4gGtraxQ9DAUf9/kCUPQ8zjuOE//3Icdx0VtaCf/3
        kBra2soOggKf9/kBUHQczhuGE//3IcNw0ra0AAAAAD90AAAAA/Y/94AAAAB31C7duUHQcYAAAAB+qA5/98AAjZOg6Ds4bhuAHyB4f/QAChghu
        G4aXLVsAABiDu/2AmMLrrrlB0HQcL3UAwDAkAwDAkA4S8Hh4djGYzGxcXFx48eOXXXXXXXXXXXGCwWCwWCwsLDhw0/9k=""",
        """/9j/9wALCwAYACABAREA/9oACAEBAAAAADOCEIiIkkkkqqqqqoEUUCKEEohKISkSkSkVIqlUqCKGGCGGEYwjGJmJmJmJmTMmYYQ6CHQjoRwA
        AAAB6TfhbbdXvgAAAAB2pOgM6AzoDDVSqVSgAAAAD1iWCEIiIgAAAAAO0QAAAADsylUqlQlstloAAAAB7ZHJJJJQAAAAAOxAAAAADsWy2WxidA
        zoGcAAAAAfCRqqqqArsDd3QN0DGrVsOTjVf+BXArPbaJbWwJL/f8QGvXmKoGqBgKP/f4koGqBm23HD/38QA22ivXgU/3/kCXrzKoNUGBT/f8p
        QaoM224Yf/3kAbbSvXgE//3IEvXmVQaoMAn//ZSg1QZttxAAAAAPywAAAAD8b/3gAAAAHd0m20r16AB4QDf9/wAH7Fe+yqDVBqgIAAAAA+5Ha
        /3AAJOSDVBqg2223EdgOp/wEli222l99+ADpoBgGBIBgGBIBwj//bKoNUGqGqHUOodQ9D0PQ2222222222207777/3//f6D/2Q==""",
    ),
    JPEGLSNearLossless: (
        """/9j/9wALCwAYACABAREA/9oACAEBAAIAACYlX/9//j//dQAAAAN7n2fYAAAAAbFpEBNTJSoAAAAANlABHoEJJVvDkBhziIid/g4gX8zGSXPf
        FgBdCAUMBJafbv5ERECBso0+nu0cSyv0/2gaEDSNXe39Jcu/99Vt+0/rF2n97SqIG5f/f8R7z0v6AAAAAG1RwvS3gAAAABt14m/4AMY8n6UAG9
        //AP/Z""",
        """/9j/9wALCwAYACABAREA/9oACAEBAAIAACYlX/9//j//dYAAAAN3m29YAAAAAbBqPyY0WVAAAAAAbCAH+kQFjezAAAAAAbCC7QQEwEJTXzwA
        AAAANcAAAAADXIuIiU/ew3AWby7/J6AGBggFbv8/6Biypufz/oCIkEBV/zfegd3pn+oDn/394Pfve30AQHnd/T6Pw/6boAAAAAbNIwHH9/gAAA
        ABtVV8vS3gAvln6fBxr/j/2Q==""",
        """/9j/9wALCwAYACABAREA/9oACAEBAAIAACYlX/9//j//dgAAAAN1u2zsAAAAANc1n1ExJVUAAAAAGvgB7qP6WsTYAAAAAGugs0MBpiIKqqdM
        AAAAADWgAAAAA12KjAQ0732TcBXsIT/6dADMO/9LsDEw/3/0DC//PIDD7/noGFz/U6AMDYff8uhsDAWnfy30alte/TPAAAAADZKxAfK724AJ+S
        j5n0+AAAAAG2VF0feDfP9g/9k=""",
    ),
}


def plane(number: int) -> np.ndarray:
    """The stored values (row, column) that were encoded."""
    y, x = np.mgrid[:24, :32]
    disc = (x - 14 - number) ** 2 + (y - 11) ** 2 < 81
    return np.where(disc, 1064 + 7 * x - 3 * y + number, 24 + (x * y + number) % 3).astype(np.uint16)


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize(("syntax", "error"), [(JPEGLSLossless, 0), (JPEGLSNearLossless, 2)])
def test_jpeg_ls(syntax: str, error: int, fallback: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if fallback:  # what users without any JPEG plugin of pydicom's have: SimpleITK's GDCM
        monkeypatch.setattr(pydicom.Dataset, "pixel_array", property(lambda self: 1 / 0))
    slices = [dicom_slice(plane(number), (0, 0, 2.0 * number)) for number in range(3)]
    for one, stream in zip(slices, STREAMS[syntax], strict=True):
        one.PixelData = encapsulate([base64.b64decode(stream)])
        one["PixelData"].is_undefined_length = True
        one.file_meta.TransferSyntaxUID = syntax
    volume = read(save_dicom(tmp_path, slices))[0].numpy()
    true = np.stack([plane(number).T for number in range(3)], -1)[::-1, ::-1].astype(np.float32) - 1024
    assert np.abs(volume - true).max() == error


@pytest.mark.parametrize("syntax", STREAMS)
def test_half_a_stream_is_refused(syntax: str, tmp_path: Path) -> None:
    slices = [dicom_slice(plane(number), (0, 0, 2.0 * number)) for number in range(3)]
    for one, stream in zip(slices, STREAMS[syntax], strict=True):
        packed = base64.b64decode(stream)
        one.PixelData = encapsulate([packed[: len(packed) // 2]])
        one["PixelData"].is_undefined_length = True
        one.file_meta.TransferSyntaxUID = syntax
    with pytest.raises(ValueError, match=r"JPEG-LS .* pixels without an end: truncated"):
        read(save_dicom(tmp_path, slices))
