"""Where a checkpoint lies: a local folder, an id of the hub, or a folder of a store."""

from __future__ import annotations

from jaxft.data.remote_folder import downloaded_folder, is_storage
from jaxft.models import hf


def local_checkpoint(place: str) -> str:
    """The local folder of a checkpoint.

    Args:
      place: `config.model.path` and the like: a folder, a hub id, or an address such as 's3://bucket/bert',
        which is downloaded once into the user's cache.

    Raises:
      ValueError: there is none; one line. StoreError: the store cannot be reached.
    """
    return str(downloaded_folder(place)[0]) if is_storage(place) else hf.resolve(place)
