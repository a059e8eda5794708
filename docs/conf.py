"""Sphinx: pages in Markdown (MyST), figures from results/ and experiments/results/ by Jinja, the API
from docstrings.
"""

import pathlib
import re
import sys

import jinja2

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import figures  # noqa: E402

project = "vlx"
copyright = "vlx's authors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "generated"]

html_theme = "furo"
html_title = "vlx"
html_static_path = ["static"]
html_css_files = ["tables.css"]

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

default_role = "code"  # docstrings have `names` as in Markdown
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 80
autodoc_default_options = {"members": True}
napoleon_use_ivar = True


def _fill_in(app, page, source):
  """Pages are Jinja templates over `figures`: a name that is not there ends the build."""
  environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True)
  source[0] = environment.from_string(source[0]).render(figures.NAMES)


def _as_in_markdown(app, what, name, obj, options, lines):
  """Docstrings are written to be read as they stand: what is indented behind an empty line is code
  or a table, and a bar is a bar.
  """
  found, literal = [], False
  for before, line in zip(["", *lines], lines):
    indented = line.startswith("  ")
    if line.strip() and not indented:
      literal = False
    elif indented and not before.strip() and not literal and found and found[-1:] == [""]:
      section = next((text for text in reversed(found) if text and text[0] != " "), "")
      if section not in SECTIONS:
        literal = True
        found += ["::", ""]
    found.append(line if literal else line.replace("|", r"\|"))
  lines[:] = found


SECTIONS = ("Args:", "Attributes:", "Raises:", "Returns:", "Yields:")


def _readable(app, what, name, obj, options, signature, returns):
  """Without the fields that Flax gives each module, and with JAX's arrays by their short name."""
  if signature is None:  # a module
    return None
  short = lambda text: text and re.sub(r"jaxlib\._jax\.Array|jax\.Array", "Array", text)
  return short(re.sub(r", parent: .*\)$", ")", signature)), short(returns)


def setup(app):
  figures.draw_plots()
  app.connect("source-read", _fill_in)
  app.connect("autodoc-process-signature", _readable)
  app.connect("autodoc-process-docstring", _as_in_markdown, priority=400)  # before napoleon's
