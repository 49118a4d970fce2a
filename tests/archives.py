"""Tar and zip files of given members, harmful ones as well."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile


def tarred(path, *members, mode="w:gz"):
    """A tar file of (name, content or (type, link target))."""
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                info.type, info.linkname = content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def zipped(path, *members):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            if isinstance(content, tuple):
                info.external_attr, content = (stat.S_IFLNK | 0o777) << 16, content[1]
            file.writestr(info, content)
    return path
