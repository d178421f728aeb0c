"""Where the files of a data set come from: a folder of the user's, or a download that is checked and kept."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["RemoteFiles", "cache_folder"]


def cache_folder() -> Path:
    """Where downloads are kept: ``$XDG_CACHE_HOME/minigrad``, by default ``~/.cache/minigrad``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "minigrad"


@dataclass(frozen=True)
class RemoteFiles:
    """The published files of one data set.

    Attributes:
        name: the data set's name in messages.
        folder: the folder that holds the files, below the data root.
        mirrors: addresses that the file names are appended to, tried in order; or none.
        sha256: file name to the sha256 of its content, in hexadecimal.
        origin: where the files are from if there is no mirror, as a sentence.
    """

    name: str
    folder: str
    mirrors: Sequence[str]
    sha256: Mapping[str, str]
    origin: str = ""

    def path(self, filename: str, root: str | os.PathLike[str] | None = None, download: bool = True) -> Path:
        """The local path of ``filename``, downloaded first if need be.

        It is looked for in ``root/<folder>/``. Without a root, that is the folder named by the environment
        variable ``MINIGRAD_DATA``, whose files are the user's own affair, so nothing is ever downloaded into
        it; without that, :func:`cache_folder`.

        Raises:
            FileNotFoundError: the file is missing and may not be downloaded.
            ImportError: it would have to be downloaded, and pooch is not installed.
            OSError: no mirror delivered it.
        """
        environment = os.environ.get("MINIGRAD_DATA") if root is None else None
        base = Path(root or environment or cache_folder()).expanduser()
        path = base / self.folder / filename
        if path.is_file():
            return path
        if not self.mirrors:
            raise FileNotFoundError(
                f"{path} is missing, and there is no address to download {self.name} from. {self.origin}. "
                f"Put the file there, or set MINIGRAD_DATA to the folder that holds {self.folder}/{filename}"
            )
        if environment:
            raise FileNotFoundError(
                f"{path} is missing: MINIGRAD_DATA is set to {environment!r}, so {self.name} is read from "
                f"its folder {self.folder!r} and not downloaded. Put the file there (from "
                f"{self.mirrors[0]}{filename}) or unset MINIGRAD_DATA"
            )
        if not download:
            raise FileNotFoundError(
                f"{path} is missing: pass download=True to fetch it, or put it there "
                f"(from {self.mirrors[0]}{filename})"
            )
        self._download(path)
        return path

    def _download(self, path: Path) -> None:
        try:
            import pooch  # type: ignore[import-untyped]
        except ImportError as error:
            raise ImportError(
                f'{path} is missing, and downloading {self.name} needs pooch: pip install "minigrad[data]"'
            ) from error

        failures = []
        for mirror in self.mirrors:
            try:
                # pooch writes to a temporary file and moves it into place only if the checksum is right.
                pooch.retrieve(
                    url=mirror + path.name,
                    known_hash=f"sha256:{self.sha256[path.name]}",
                    fname=path.name,
                    path=path.parent,
                    progressbar=importlib.util.find_spec("tqdm") is not None,
                )
                return
            except (OSError, ValueError) as error:  # no connection, no such address; a wrong checksum
                failures.append(f"  {mirror}{path.name}: {error}")
        raise OSError(
            f"cannot download {path.name} of {self.name}. Tried:\n" + "\n".join(failures) + f"\n"
            f"Check the connection, or get the file by other means and put it at {path}"
        )
