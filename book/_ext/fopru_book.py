"""What the book needs of Sphinx beyond its configuration file."""

import hashlib
import html
import logging
import os
import textwrap
from pathlib import Path

from docutils import nodes
from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor
from myst_nb.core.read import is_myst_markdown_notebook
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment

ROOT = Path(__file__).parents[2]
MATHJAX = "vendor/mathjax/tex-mml-chtml.js"
WIDGETS = {
    "vendor/require.js": {},
    "widgets-init.js": {},
    "vendor/embed-amd.js": {"data-jupyter-widgets-cdn": "about:blank#"},  # never ask for more
}


def source_hash() -> str:
    """Of everything that a notebook's output depends on besides the notebook itself."""
    digest = hashlib.sha256()
    places = [
        *(path for path in ROOT.glob("fopru/**/*") if "__pycache__" not in path.parts),
        *ROOT.glob("data/**/*"),
        *ROOT.glob("requirements/*"),
    ]
    for path in sorted(path for path in places if path.is_file()):
        digest.update(path.relative_to(ROOT).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def configure(app: Sphinx, config: Config) -> None:
    # The pocket model is tiny: beside another job, a second thread makes it ten times slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # kernels inherit it
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers looks at it too
    # jupyter-cache looks at the notebook only; a new package or new weights must run it again.
    config.nb_execution_cache_path = str(ROOT / ".jupyter_cache" / source_hash())
    if (ROOT / "book" / "_static" / MATHJAX).is_file():
        config.mathjax_path = MATHJAX
        config.nb_ipywidgets_js = WIDGETS
    else:
        # not a warning, which would fail the build
        print("book/_static/vendor is empty: pages load MathJax and widgets from CDNs", flush=True)


def run_notebooks(app: Sphinx, env: BuildEnvironment, pages: list[str]) -> None:
    """Run the notebooks that are not in the cache, side by side on the cores. One that fails is run
    again when its page is read, and there it is told."""
    cache, uris = get_cache(app.config.nb_execution_cache_path), []
    for page in pages:
        path = Path(env.doc2path(page))
        if path.suffix == ".ipynb":
            uris.append(cache.add_nb_to_project(str(path)).uri)
        elif is_myst_markdown_notebook(path.read_text()):
            reader = {"type": "plugin", "name": "myst_nb_md"}
            uris.append(cache.add_nb_to_project(str(path), read_data=reader).uri)
    if uris:
        told = logging.getLogger(__name__)
        told.setLevel(logging.WARNING)
        executor = load_executor("local-parallel", cache, told)
        executor.run_and_cache(filter_uris=uris, timeout=app.config.nb_execution_timeout)


def page_context(app: Sphinx, page: str, template: str, context: dict, doctree) -> None:
    """Follow the reader's light or dark setting, tell what a shared link is about, and leave out
    sphinx-thebe, which is not used and names a CDN."""
    context["default_mode"] = "auto"
    if "body" in context:  # what folds is named by its own words
        context["body"] = context["body"].replace(' aria-label="Toggle hidden content"', "")
    if doctree is not None:
        context["metatags"] = context.get("metatags", "") + shared(app, page, context, doctree)
    context["script_files"] = [s for s in context.get("script_files", []) if not _is_thebe(s)]
    context["css_files"] = [s for s in context.get("css_files", []) if not _is_thebe(s)]


def shared(app: Sphinx, page: str, context: dict, doctree: nodes.document) -> str:
    """Return the tags by which a shared link shows title, first paragraph and a picture."""
    words = next((p.astext() for p in doctree.findall(nodes.paragraph)), "")
    words = " ".join(words.removeprefix("Objective. ").split())
    words = textwrap.shorten(words, 200, placeholder=" …")
    base = app.config.html_baseurl
    tags = {
        'name="description"': words,
        'property="og:type"': "article",
        'property="og:title"': html.unescape(context["title"]),
        'property="og:description"': words,
        'property="og:url"': f"{base}{page}.html",
        'property="og:image"': f"{base}_static/card.jpg",
        'name="twitter:card"': "summary_large_image",
    }
    return "".join(f'<meta {name} content="{html.escape(v)}" />\n' for name, v in tags.items())


def _is_thebe(file: object) -> bool:
    parts = (getattr(file, "filename", None), getattr(file, "attributes", {}).get("body"), file)
    return any("thebe" in str(part) for part in parts)


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", configure, priority=900)
    app.connect("env-before-read-docs", run_notebooks)
    app.connect("html-page-context", page_context, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
