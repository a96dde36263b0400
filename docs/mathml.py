"""Formulas as MathML, which browsers show without a script and without a network."""

from typing import NoReturn

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)


def visit_formula(translator: HTML5Translator, node: nodes.math | nodes.math_block) -> NoReturn:
    """Writes a formula, or a warning if docutils cannot translate it."""
    block = isinstance(node, nodes.math_block)
    try:
        formula = tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        logger.warning("no MathML for %r: %s", node.astext(), error, location=node)
        formula = translator.encode(node.astext())
    tag = "div" if block else "span"
    translator.body.append(f"{translator.starttag(node, tag, '', CLASS='math')}{formula}</{tag}>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Makes this the way in which Sphinx writes formulas."""
    app.add_html_math_renderer("mathml", inline_renderers=(visit_formula, None), block_renderers=(visit_formula, None))
