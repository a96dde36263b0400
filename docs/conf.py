"""How the documentation is built: `make docs`, without a network and with warnings as errors."""

import inspect
import os
import pkgutil
import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.ext import autosummary
from sphinx.ext.doctest import DocTestBuilder
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective as Directive

import dynroute
import dynroute_metaworld
import dynroute_sb3

sys.path.insert(0, str(Path(__file__).parent))

logger = logging.getLogger(__name__)

PACKAGES = (dynroute, dynroute_metaworld, dynroute_sb3)
"""The packages that the pages document."""

project = "dynroute"
author = "The dynroute developers"
project_copyright = author
version = release = dynroute.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.coverage",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "gallery_page",
    "language_tables",
    "learning_curves",
    "mathml",
    "result_tables",
    "speed_tables",
]
exclude_patterns = ["_build"]
default_role = "code"  # `x` in a docstring is code, as in the error messages
highlight_language = "python"
pygments_dark_style = "github-dark"
smartquotes_action = "De"  # dashes and ellipses, no quotes: "rsg" is a value, quotes included
python_maximum_signature_line_length = 100

# Links to other projects need their inventories, and those a network: only where the variable asks for it.
if os.environ.get("DYNROUTE_DOCS_ONLINE"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }

nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(abc|collections|contextlib|io|typing|torch|zipfile)(\..*)?"),
    ("py:class", r"(bool|bytes|dict|float|frozenset|int|list|object|set|str|tuple|None|Ellipsis)"),
    ("py:exc", r"(AssertionError|RuntimeError|TypeError|ValueError)"),
    (
        "py:class",
        r"(.*\.T|BaseCallback|Module|Path|ProcessGroup|VecEnv|pathlib.Path|Task)",
    ),  # as they are called in signatures
    ("py:.*", r"(gymnasium|metaworld|multiprocessing|numpy|rich|stable_baselines3|np|gym|spaces)(\..*)?"),
]

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"dynroute {release}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/favicon.svg"
html_theme_options = {
    "light_logo": "logo-light.svg",
    "dark_logo": "logo-dark.svg",
    "sidebar_hide_name": True,
    "light_css_variables": {"color-brand-primary": "#146e3c", "color-brand-content": "#146e3c"},
    "dark_css_variables": {"color-brand-primary": "#4cc38a", "color-brand-content": "#4cc38a"},
}
copybutton_prompt_text = r">>> ?|\.\.\. ?|\$ "  # the button leaves out prompts, and the output of what is typed
copybutton_prompt_is_regexp = True
copybutton_line_continuation_character = "\\"

autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "extra_repr"}
autosummary_generate = False
autosummary.WELL_KNOWN_ABBREVIATIONS += ("Eq.", "Fig.")  # where a summary must not end
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# The examples of these pages know these names.
doctest_global_setup = """
import torch
from torch import nn

import dynroute
from dynroute import *
from dynroute.functional import *
from dynroute.losses import *
from dynroute.networks import *
from dynroute import inspect
from dynroute.inspect import draw
from dynroute.testing import assert_routed

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from dynroute_sb3 import *
from dynroute_sb3.losses import *
from dynroute_metaworld import *

torch.manual_seed(0)
"""

# A public name that no page documents is a warning, and `-q -W` makes it an error.
coverage_modules = [*(package.__name__ for package in PACKAGES), "dynroute_command"]
coverage_show_missing_items = True
coverage_statistics_to_stdout = False
coverage_ignore_pyobjects = [
    # How torch prints a module: its own documentation describes it.
    r"\.extra_repr$",
]


def _modules() -> list[ModuleType]:
    inside = [pkgutil.walk_packages(package.__path__, f"{package.__name__}.") for package in PACKAGES]
    names = [found.name for packages in inside for found in packages if not found.name.endswith(".__main__")]
    return [*PACKAGES, *(import_module(name) for name in names if find_spec("triton") or not name.endswith("_kernels"))]


def _hide_private_names(app: Sphinx, config: Config) -> None:
    """Leaves out of the coverage what no `__all__` names: that is what makes a name private in dynroute."""
    for module in _modules():
        for name, thing in vars(module).items():
            if getattr(thing, "__module__", None) == module.__name__ and name not in module.__all__:
                config.coverage_ignore_pyobjects.append(f"^{re.escape(f'{module.__name__}.{name}')}$")


def _know_real_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Makes `dynroute.gates.Gate.choose` an alias of `dynroute.Gate.choose`, the name that the pages use.

    Sphinx does so for classes alone, while its coverage builder asks for functions and methods by their real names.
    """
    domain = env.domains.python_domain
    modules = sorted(_modules(), key=lambda module: -len(module.__name__))
    for public, entry in list(domain.objects.items()):
        module = next((module for module in modules if public.startswith(f"{module.__name__}.")), dynroute)
        owner, _, member = public.removeprefix(f"{module.__name__}.").partition(".")
        thing = getattr(module, owner, None)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            real = ".".join(filter(None, (thing.__module__, thing.__qualname__, member)))
            domain.objects.setdefault(real, entry._replace(aliased=True))


def _check_exports(app: Sphinx, env: BuildEnvironment) -> None:
    """Warns of what the coverage builder does not look at: constants, and names that `dynroute` itself exports."""
    documented = {*env.domains.python_domain.objects, *env.domains.python_domain.modules}
    for module in _modules():
        inside = {known for known in documented if known.startswith(f"{module.__name__}.")}
        for name in module.__all__:
            exact = module in PACKAGES and not name.isupper()  # a constant is where it was made
            if (
                f"{module.__name__}.{name}" not in inside
                if exact
                else not any(known.endswith(f".{name}") for known in inside)
            ):
                logger.warning("undocumented public name: %s.%s", module.__name__, name)


navigation: dict[tuple[object, ...], str] = {}


def _reuse_navigation(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: object) -> None:
    """Makes the navigation of pages of sources and indices once for each depth of folders.

    These pages are in no table of contents, so that their navigation differs by its relative links alone. To make it
    for each takes a third of the time of the HTML builder.
    """
    make = context.get("toctree")
    if make is None or page in app.env.all_docs:
        return

    def reused(**options: Any) -> str:
        key = (page.count("/"), *sorted(options.items()))
        if key not in navigation:
            navigation[key] = make(**options)
        return navigation[key]

    context["toctree"] = reused


def _mend_back_links(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: object) -> None:
    """Leads from sources to the names that the pages use.

    Viewcode takes all names of a file for names of one module. The pages have some of them under the package that
    exports them, and the rest under their file.
    """
    objects = app.env.domains.python_domain.objects
    module = page.removeprefix("_modules/").replace("/", ".")

    def mended(link: re.Match[str]) -> str:
        entry = objects.get(f"{module}.{link['name']}")
        return f"{link['start']}{entry.node_id}" if entry else link[0]

    if page.startswith("_modules/"):
        pattern = r'(?P<start>id="(?P<name>[^"]+)">\n<a class="viewcode-back" href="[^"#]+#)[^"]+'
        context["body"] = re.sub(pattern, mended, context["body"])


def _hide_module_arguments(app: Sphinx, what: str, name: str, thing: object, *_: object) -> tuple[str, None] | None:
    """Shows `Soft()` and not `Soft(*args, **kwargs)`, the signature of every module without a constructor."""
    return ("()", None) if what == "class" and getattr(thing, "__init__", None) is torch.nn.Module.__init__ else None


class Picture(Directive):
    """Runs its content and shows the SVG picture that it leaves in `picture`; the argument describes the picture."""

    has_content = True
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        names: dict[str, object] = {}
        with torch.random.fork_rng():
            exec(doctest_global_setup + "\n".join(self.content), names)
        figure = nodes.figure("", nodes.raw("", str(names["picture"]), format="html"))
        figure += nodes.caption("", self.arguments[0])
        return [figure]


class PageExamples(DocTestBuilder):
    """Runs the examples of the pages; those of docstrings run among the tests."""

    def skipped(self, node: nodes.Element) -> bool:
        """Whether an example does not run."""
        return ":docstring of " in (node.source or "") or super().skipped(node)


def setup(app: Sphinx) -> None:
    """Registers the above with Sphinx, which calls this function."""
    app.add_directive("picture", Picture)
    app.connect("config-inited", _hide_private_names)
    app.connect("autodoc-process-signature", _hide_module_arguments)
    app.connect("html-page-context", _reuse_navigation, priority=400)  # before the theme asks for it
    app.connect("html-page-context", _mend_back_links)
    app.add_builder(PageExamples, override=True)
    app.connect("env-updated", _know_real_names)  # of the builders that read what another has read, too
    app.connect("env-check-consistency", _check_exports)
