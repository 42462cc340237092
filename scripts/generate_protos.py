"""How is the committed protobuf code made from proto/? (--check: is it still what proto/ says?)"""

from __future__ import annotations

import argparse
import filecmp
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = sorted((ROOT / "proto/nvstream/v1").glob("*.proto"))
PRIVATE = ROOT / "proto/nvstream/engine/v1/engine.proto"
PUBLIC_HOME = ROOT / "clients/python/nvstream/v1"
PRIVATE_HOME = ROOT / "daemon/nvstreamd/wire"


def well_known_protos() -> Path:
    """The directory of google/protobuf/*.proto that grpcio-tools ships."""
    spec = importlib.util.find_spec("grpc_tools")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "_proto"


def compile_into(out: Path) -> None:
    """Runs protoc with the Python, gRPC and typing plug-ins."""
    include = [f"-I{ROOT / 'proto'}", f"-I{well_known_protos()}"]
    plain = [f"--python_out={out}", f"--mypy_out=quiet:{out}"]
    services = [f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}"]
    protoc = [sys.executable, "-m", "grpc_tools.protoc", *include]
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    subprocess.run([*protoc, *plain, *services, *map(str, PUBLIC)], check=True, env=environment)
    subprocess.run([*protoc, *plain, str(PRIVATE)], check=True, env=environment)


def collect(out: Path) -> dict[Path, Path]:
    """Where each generated file belongs in the tree: {home: generated}. Empty service files are left out."""
    homes: dict[Path, Path] = {}
    for made in sorted((out / "nvstream/v1").iterdir()):
        has_service = made.name.removesuffix("i").removesuffix("_pb2_grpc.py")
        if "_grpc" in made.name and "service " not in (ROOT / f"proto/nvstream/v1/{has_service}.proto").read_text():
            continue
        homes[PUBLIC_HOME / made.name] = made
    for made in sorted((out / "nvstream/engine/v1").iterdir()):
        homes[PRIVATE_HOME / made.name] = made
    return homes


def main() -> int:
    """Writes the generated files, or with --check compares them; 1 when they differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        compile_into(Path(scratch))
        homes = collect(Path(scratch))
        if check:
            stale = [h for h, made in homes.items() if not h.exists() or not filecmp.cmp(h, made, shallow=False)]
            for home in stale:
                print(f"{home.relative_to(ROOT)} is not what proto/ says: run `make proto`", file=sys.stderr)
            return 1 if stale else 0
        for home, made in homes.items():
            home.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made, home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
