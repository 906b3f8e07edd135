"""The API reference: the directive ``api``, and names in docstrings.

The directive documents a module::

    .. api:: mmlocal.layers

It writes the docstring of the module, a table of its classes and functions, and the docstring of
each public name. A package without ``__all__`` stands for all its public modules. So a new file in
a folder appears in the reference by itself.
"""

from __future__ import annotations

import ast
import functools
import inspect
import pkgutil
import sys
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar, TypeVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.inspect import isclass, isroutine

# Each module of a command has them, and docs/command_line.md describes the commands.
OF_COMMANDS = ("parse_args", "main")
WIDEST_VALUE = 70


def modules_of(name: str, files: bool = False) -> list[ModuleType]:
    """The modules for which a name stands: one, or the files of a package without ``__all__``.

    Args:
        name: dotted name of a module or package.
        files: whether the files of a package with ``__all__`` follow it.
    """
    module = import_module(name)
    exports = hasattr(module, "__all__") or not hasattr(module, "__path__")
    if exports and not files:
        return [module]
    inner = [found.name for found in pkgutil.iter_modules(module.__path__) if not found.ispkg]
    modules = [import_module(f"{name}.{file}") for file in inner if not file.startswith("_")]
    return [module] * exports + [module for module in modules if names_of(module)]


def names_of(module: ModuleType) -> list[str]:
    """The public names of a module: ``__all__``, or the classes, functions and constants in it.

    Args:
        module: the module.
    """
    if names := getattr(module, "__all__", None):
        return list(names)
    constants = constants_of(module)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and name not in OF_COMMANDS
        and (name in constants or getattr(value, "__module__", None) == module.__name__)
        and not is_exported(module, name)
    ]


def is_exported(module: ModuleType, name: str) -> bool:
    """Whether the package of a module exports a name, so that the name has an entry there.

    Args:
        module: a module.
        name: one of its names.
    """
    package = sys.modules.get(module.__package__ or "")
    return package is not module and name in getattr(package, "__all__", ())


def constants_of(module: ModuleType) -> dict[str, list[str]]:
    """The comments ``#:`` of constants, in the file of a module and in the files of its folder.

    Args:
        module: the module.

    Returns:
        The lines of the comment by name.
    """
    files = [module.__name__]
    files += [name for name in sys.modules if name.rpartition(".")[0] == module.__name__]
    found: dict[str, list[str]] = {}
    for file in files:
        comments = ModuleAnalyzer.for_module(file).find_attr_docs()
        found |= {name: text for (owner, name), text in comments.items() if not owner}
    return found


def shown_bases(cls: type) -> list[type]:
    """The base classes of a class, but not those without a meaning for the reader.

    Args:
        cls: the class.
    """
    return [base for base in cls.__bases__ if base is not object and base.__name__ != "Unscripted"]


class Api(SphinxDirective):
    """Document a module, with ``:only:`` some of its names, with ``:files:`` also its files."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {
        "only": directives.unchanged_required,
        "files": directives.flag,
    }

    def run(self) -> list[nodes.Node]:
        only = self.options.get("only", "").split()
        modules = modules_of(self.arguments[0], "files" in self.options)
        return [self._section(module, only) for module in modules]

    def _section(self, module: ModuleType, only: list[str]) -> nodes.section:
        prefix = module.__name__
        names = only or names_of(module)
        values = {name: getattr(module, name) for name in names}
        listed = [name for name in names if isclass(values[name]) or isroutine(values[name])]
        lines = [f".. automodule:: {prefix}", "   :no-index:" if only else "", ""]
        if len(listed) > 1:
            lines += [".. autosummary::", "   :nosignatures:", ""]
            lines += [*(f"   {name}" for name in listed), ""]
        comments = constants_of(module) if len(listed) < len(names) else {}
        for name, value in values.items():
            if isclass(value):
                lines += [f".. autoclass:: {prefix}.{name}", "   :members:"]
                lines += ["   :show-inheritance:"] if shown_bases(value) else []
            elif isroutine(value):
                lines += [f".. autofunction:: {prefix}.{name}"]
            else:
                text = repr(value)
                lines += [f".. py:data:: {name}", f"   :module: {prefix}"]
                lines += [f"   :value: {text}"] if len(text) <= WIDEST_VALUE else []
                lines += ["", *(f"   {line}" for line in comments.get(name, []))]
            lines += [""]
        section = nodes.section("", nodes.title("", prefix), ids=[nodes.make_id(f"of-{prefix}")])
        source = self.get_source_info()[0]
        self.state.nested_parse(StringList(lines, source), self.content_offset, section)
        return section


def resolve_name(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, text: nodes.Element
) -> nodes.Node | None:
    """Find the meaning of a name in a docstring, where Sphinx finds none.

    A short name means what it means in the module of the docstring. ``mmlocal.X`` may be the name
    of a class in a config. A name of another library has no page here, and a private name has none
    either. So they stay texts, but they must exist.
    """
    found = _find(node) if node["refdomain"] == "py" else None
    if found is None:
        return None
    if isinstance(found, ModuleType):
        name = found.__name__
    elif hasattr(found, "__qualname__"):
        name = f"{found.__module__}.{found.__qualname__}"
    else:  # a constant
        name = f"{node.get('py:module')}.{node['reftarget'].rpartition('.')[2]}"
    private = isinstance(found, TypeVar) or any(
        part.startswith("_") for part in f"{name}.{node['reftarget']}".split(".")
    )
    if private or not name.startswith("mmlocal."):
        return text
    domain = env.get_domain("py")
    *modules, last = name.split(".")
    while modules and name not in domain.objects:  # the entry is where a package exports the name
        modules.pop()
        name = ".".join([*modules, last])
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, text)


def _find(node: addnodes.pending_xref) -> object | None:
    """The object that a name in a docstring means, or ``None``."""
    target = node["reftarget"].lstrip(".")
    module = sys.modules.get(node.get("py:module") or "")
    owner = getattr(module, (node.get("py:class") or "").partition(".")[0], None)
    own = sys.modules.get(getattr(owner, "__module__", ""))
    package = getattr(module, "__package__", None)
    # A package documents names that its files define.
    near = [sys.modules[name] for name in sys.modules if package and name.startswith(f"{package}.")]
    for scope in (module, owner, own, *near):
        if scope is not None and (found := _inside(scope, target)) is not None:
            return found
    first, dot, rest = target.partition(".")
    for scope in (module, own, *near):
        if scope is not None and first in (imported := _imports(scope)):
            target = imported[first] + dot + rest
            break
    if target.startswith("mmlocal.") and target.count(".") == 1:
        return _registered(target.removeprefix("mmlocal."))
    try:
        return pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError):
        return None


def _inside(scope: object, dotted: str) -> object | None:
    for name in dotted.split("."):
        scope = getattr(scope, name, None)
    return scope


@functools.cache
def _imports(module: ModuleType) -> dict[str, str]:
    """Full names by short name of all imports in a file, also of those for type checkers only."""
    found: dict[str, str] = {}
    if not inspect.getsourcefile(module):
        return found
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            found |= {alias.asname or alias.name: prefix + alias.name for alias in node.names}
    return found


def _registered(name: str) -> type | None:
    """The class that a config names ``mmlocal.<name>``."""
    from mmengine.registry import Registry

    from mmlocal import registry

    for found in vars(registry).values():
        if isinstance(found, Registry) and found.scope == "mmlocal" and name in found.module_dict:
            return found.module_dict[name]
    return None


def hide_bases(app: Sphinx, name: str, obj: type, options: dict, bases: list[type]) -> None:
    """Leave base classes out that tell the reader nothing."""
    bases[:] = shown_bases(obj)


def hide_none(app: Sphinx, domain: str, kind: str, content: nodes.Element) -> None:
    """Leave the type out that a function without a result returns."""
    for field in list(content.findall(nodes.field)):
        if [part.astext() for part in field] == ["rtype", "None"]:
            field.parent.remove(field)
    for fields in list(content.findall(nodes.field_list)):
        if not fields.children:
            fields.parent.remove(fields)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("api", Api)
    app.connect("autodoc-process-bases", hide_bases)
    app.connect("object-description-transform", hide_none, 600)  # autodoc adds types at 500
    app.connect("missing-reference", resolve_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
