"""Saved models that do harm when they are unpickled."""

import base64
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Harm:
    """What makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def replaced(file: Path, copy: Path, content: Callable[[str, bytes], bytes]) -> Path:
    """Copies a zip file with other contents."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            new.writestr(name, content(name, old.read(name)))
    return copy


def hostile(file: Path, copy: Path, harm: Path) -> Path:
    """Copies a saved model with a harmful pickle in the place of each pickle, and one more."""

    def content(name: str, held: bytes) -> bytes:
        if name != "data":
            return held
        pickled = base64.b64encode(pickle.dumps(Harm(harm))).decode()
        data = json.loads(held)
        for value in data.values():
            if isinstance(value, dict) and ":serialized:" in value:
                value[":serialized:"] = pickled
        data["more"] = {":type:": "", ":serialized:": pickled}
        return json.dumps(data).encode()

    return replaced(file, copy, content)
