"""What pages are made with: jinja2, which escapes all text, and matplotlib, whose SVG stands in the page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mxort.errors import MxortError
from mxort.text import format_bytes, format_sqnr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WEIGHT, REST, LINE = "#3d8bdb", "#a3adb8", "#808a96"
"""Colours that can be told from a white and from a dark page."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it takes the page's colour, and can be searched
    "svg.hashsalt": "mxort",  # the same report is the same file
    "text.parse_math": False,  # a name may hold dollars
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.alpha": 0.3,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "legend.frameon": False,
    "savefig.transparent": True,
}


def require() -> None:
    """Raises MxortError where a library that pages need is missing: before the work, not after."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MxortError(
            f'a page needs jinja2 and matplotlib ({error}): pip install "mxort[report]"'
        ) from error


def render(template: str, **values: Any) -> str:
    """The page of a template beside this file. Every value is escaped, pictures made by :func:`picture` excepted.

    Raises MxortError without jinja2.
    """
    require()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": format_bytes, "sqnr": format_sqnr}
    return environment.get_template(template).render(values)


def picture(draw: Callable[[Figure], None], height: float, prefix: str = "") -> Any:
    """SVG to stand in a page (jinja2's Markup), 10 by ``height`` inches before the page scales it.

    ``draw`` fills the figure. Names of elements are unique within a picture; a page with several needs a ``prefix`` for
    each.
    Raises MxortError without matplotlib.
    """
    require()
    import matplotlib.style
    from markupsafe import Markup
    from matplotlib.figure import Figure

    text = io.StringIO()
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # glyphs that matplotlib's font lacks: the browser's has them
        figure = Figure(figsize=(10, height), layout="constrained")
        draw(figure)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=nothing)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", text.getvalue())
    return Markup(svg[svg.index("<svg") :])  # without the XML declaration, which is no HTML
