"""What ClearImageCache removes (spec kms section 2.3).

This KMS judges images by measurement documents and downloads none, so its cache is empty unless another KMS
used the same directory. Operators' tools still call the method.
"""

import re
import shutil
from pathlib import Path

from shared.errors import ProtocolError, StorageError

ALL = "all"
_KEY = re.compile(r"[0-9A-Fa-f]*")


class ImageCache:
    """The directory `core.image.cache_dir`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def clear(self, image_hash: str, config_hash: str) -> None:
        """Remove what the two keys name: nothing when empty, a whole kind when `all`, else one hex key.

        Both are checked before anything goes. Raises `ProtocolError("kms.cache_key")`,
        `StorageError("kms.cache.clear")`.
        """
        wanted = ((image_hash, "images"), (config_hash, "measurements"))
        for key, _ in wanted:
            if key != ALL and not _KEY.fullmatch(key):
                raise ProtocolError("kms.cache_key", "invalid cache key")
        for key, kind in wanted:
            if key:
                _remove(self._directory / kind if key == ALL else self._directory / kind / key)


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError("kms.cache.clear", f"cannot clear the image cache: {error.strerror}") from error
