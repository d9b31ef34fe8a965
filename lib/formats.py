"""Tells files that hold images in formats that are not read here."""

import contextlib

CONVERSIONS = {  # what a file is: what to do with it
    "an ARFF file": "convert it to a table (CSV)",
    "a Parquet file": "convert it to a table (CSV)",
    "a MATLAB file": "convert it to a table (CSV)",
    "an HDF5 file": "convert it to a table (CSV)",
    "a spreadsheet": "save it as a table (CSV)",
    "a pickle": "convert it to a table (CSV)",
    "a PyTorch file": "convert it to a table (CSV)",
    "a picture": "put the images into a table (CSV)",
    "an archive": "unpack it and name the folder",
}
ENDINGS = {
    ".arff": "an ARFF file",
    ".parquet": "a Parquet file",
    ".mat": "a MATLAB file",
    ".h5": "an HDF5 file",
    ".hdf5": "an HDF5 file",
    ".xls": "a spreadsheet",
    ".xlsx": "a spreadsheet",
    ".ods": "a spreadsheet",
    ".pkl": "a pickle",
    ".pickle": "a pickle",
    ".pt": "a PyTorch file",
    ".pth": "a PyTorch file",
    ".png": "a picture",
    ".jpg": "a picture",
    ".jpeg": "a picture",
    ".bmp": "a picture",
    ".gif": "a picture",
    ".tif": "a picture",
    ".tiff": "a picture",
    ".zip": "an archive",
    ".tar": "an archive",
    ".tgz": "an archive",
    ".7z": "an archive",
    ".rar": "an archive",
}
STARTS = {  # the first bytes, in lower case
    b"@relation": "an ARFF file",
    b"par1": "a Parquet file",
    b"matlab": "a MATLAB file",
    b"\x89hdf": "an HDF5 file",
    b"\x89png": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"pk\x03\x04": "an archive",
    b"\x1f\x8b": "an archive",
}


def other_format(path):
    """What a file is, as "a picture", by its first bytes or the ending of its name; else None."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        start = file.read(16).lower()
        for magic, name in STARTS.items():
            if start.startswith(magic):
                return name
    return ENDINGS.get(path.suffix.lower())
