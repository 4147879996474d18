"""The cache folder: where built things lie, whether they are whole, and how they get there in one piece.

In: a folder's name and a function that fills an empty folder. Out: the path of the finished folder. A folder is
published by a rename, so a reader sees all of it or none; its manifest lists size and SHA-256 of each file and the
stamp of what it was built from, so one that was damaged or belongs to an older recipe is built again. Two processes
that want the same folder take turns. Refuses to know what it is that is being built.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

MANIFEST = "manifest.json"
_ENVIRONMENT_VARIABLE = "FUNCTIONARY_VLLM_CACHE"


def cache_folder() -> Path:
    """`$FUNCTIONARY_VLLM_CACHE`, else the XDG base directory specification's place for caches."""
    if chosen := os.environ.get(_ENVIRONMENT_VARIABLE):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification wants relative paths ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "functionary-vllm"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_damage(folder: Path, stamp: str) -> str | None:
    """Why `folder` cannot be used, or None when it is whole and was built from what `stamp` names."""
    if not folder.is_dir():
        return "it is not there"
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files = manifest["files"].items()
        if manifest["stamp"] != stamp:
            return "it was built from something else"
        for name, (size, digest) in files:
            path = folder / name
            if not path.is_file() or path.stat().st_size != size or sha256(path) != digest:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    return None


def ensure_folder(folder: Path, stamp: str, build: Callable[[Path], None], report: Callable[[str], None]) -> Path:
    """Return `folder`, after `build` has filled it if it was missing, damaged or of another stamp."""
    if find_damage(folder, stamp) is None:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _turn(folder):
        reason = find_damage(folder, stamp)  # another process may have built it while this one waited
        if reason is None:
            return folder
        report(f"building {folder}: {reason}")
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            scratch.chmod(0o755)
            build(scratch)
            _write_manifest(scratch, stamp)
            shutil.rmtree(folder, ignore_errors=True)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _write_manifest(folder: Path, stamp: str) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): [path.stat().st_size, sha256(path)] for path in paths}
    (folder / MANIFEST).write_text(json.dumps({"stamp": stamp, "files": files}, indent=1) + "\n")


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
