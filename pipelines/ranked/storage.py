"""Where tables of ranked lists lie: a local folder, or a prefix in an S3-compatible bucket.

Enters: a path or an `s3://` URL. Leaves: a `Location`, which Delta and Arrow both read and write. Credentials and the
endpoint of a bucket come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ALLOW_HTTP`
and the other variables of the Rust crate `object_store`), never from a job.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa
from pyarrow import fs

from pipelines.errors import RankedListsError

__all__ = ["Location", "without_file"]

_SCHEMES = ("s3", "s3a")


@dataclass(frozen=True)
class Location:
    """A folder of some store. `url` is an absolute local path, or `s3://bucket/prefix`."""

    url: str

    @classmethod
    def of(cls, place: "str | Path | Location") -> Self:
        """The location that a user or a caller named.

        Raises:
            RankedListsError: the URL's scheme is not one that we store lists in.
        """
        if isinstance(place, Location):
            return cls(place.url)
        text = str(place)
        scheme, separator, rest = text.partition("://")
        if isinstance(place, Path) or not separator:
            return cls(str(Path(text).absolute()))
        if scheme not in _SCHEMES or not rest.strip("/"):
            raise RankedListsError(f"ranked lists are kept in a folder or below s3://bucket/prefix, not in {text!r}")
        return cls(text.rstrip("/"))

    def __truediv__(self, name: str) -> "Location":
        return Location(f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    @property
    def local(self) -> Path | None:
        """The folder, if this is one of this machine."""
        return None if "://" in self.url else Path(self.url)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.url.rsplit("/", 1)[-1]

    def filesystem(self) -> fs.FileSystem:
        """A file system whose root is this location."""
        if self.local is not None:
            return fs.SubTreeFileSystem(self.url, fs.LocalFileSystem())
        from deltalake.fs import DeltaStorageHandler

        return fs.PyFileSystem(DeltaStorageHandler(self.url))

    def folders(self) -> list[str]:
        """Names of the folders directly below, sorted; none where nothing is."""
        selector = fs.FileSelector("", recursive=False, allow_not_found=True)
        found = self.filesystem().get_file_info(selector)
        return sorted(item.base_name for item in found if item.type == fs.FileType.Directory)


def without_file(filesystem: fs.FileSystem, path: str) -> None:
    """Delete a file that may not be there."""
    try:
        filesystem.delete_file(path)
    except (FileNotFoundError, pa.ArrowInvalid):
        return
