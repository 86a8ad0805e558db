"""Edits: one function's source, changed in a few words while a `with` block lasts.

An edit names a function and two pieces of text, what stands there and what is to stand there. The
function is compiled anew from its changed source and its code object exchanged, so that every
reference to it, bound or imported, runs the mutant. A text that does not stand there exactly once
is an error: an edit whose target has moved must never pass for a surviving mutant.
"""

import ast
import difflib
import importlib
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from pagetwin.engine.errors import PagetwinError


class EditError(PagetwinError):
    """An edit does not fit the source that it is for."""


@dataclass(frozen=True)
class Edit:
    """`old`, which stands once in the function at `target`, becomes `new`.

    `target` is `package.module:function` or `package.module:Class.method`. Both texts are written
    with the function's own `def` at column 0; lines are compared without what is outside them.
    """

    target: str
    old: str
    new: str

    @property
    def num_changed_lines(self) -> int:
        """Lines that the edit removes or adds, whichever are more."""
        changed = list(difflib.ndiff(self.old.splitlines(), self.new.splitlines()))
        return max(sum(line[0] == sign for line in changed) for sign in "-+")


@contextmanager
def applied(edits: Iterable[Edit]) -> Iterator[None]:
    """Runs its block on the edited functions, which are as before after it, whatever happens.

    Raises EditError, with nothing changed, if an edit does not fit.
    """
    texts: dict[str, str] = {}
    for edit in edits:
        text = texts.get(edit.target) or _source(edit.target)
        texts[edit.target] = _replaced(text, edit)
    mutants = [(_resolve(target), text) for target, text in texts.items()]
    codes = [(function, _compiled(function, text)) for function, text in mutants]
    originals = [(function, function.__code__) for function, _ in mutants]
    _exchange(codes, texts)
    try:
        yield
    finally:
        _exchange(originals, texts)


def _exchange(codes: Iterable[tuple[FunctionType, CodeType]], targets: Iterable[str]) -> None:
    for function, code in codes:
        function.__code__ = code
    # What the other code computed must not be remembered.
    for target in targets:
        clear = getattr(_find(target), "cache_clear", None)
        if clear is not None:
            clear()


def _find(target: str) -> Any:
    """What stands under the name, wrapped or not."""
    module_name, _, path = target.partition(":")
    found: Any = None
    try:
        found = importlib.import_module(module_name)
        for name in path.split("."):
            found = inspect.getattr_static(found, name)
    except (ImportError, AttributeError) as error:
        raise EditError(
            f"edit of {target}: there is no such function ({error}); name where it is now"
        ) from None
    return found


def _resolve(target: str) -> FunctionType:
    """The plain function behind a function, a method, a static or class method or a property."""
    found = _find(target)
    if isinstance(found, property):
        found = found.fget
    found = inspect.unwrap(getattr(found, "__func__", found))
    if not isinstance(found, FunctionType):
        raise EditError(f"edit of {target}: it is a {type(found).__name__}, not a Python function")
    return found


def _source(target: str) -> str:
    return textwrap.dedent(inspect.getsource(_resolve(target)))


def _replaced(text: str, edit: Edit) -> str:
    count = text.count(edit.old)
    if count != 1 or edit.old == edit.new:
        raise EditError(
            f"edit of {edit.target}: {edit.old!r} stands there {count} times, not once; the "
            "function has changed, so write the edit anew for what it is now"
        )
    return text.replace(edit.old, edit.new)


def _compiled(function: FunctionType, text: str) -> CodeType:
    """The code of the function with this source; its decorators stay as they are."""
    name = f"{function.__module__}:{function.__qualname__}"
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise EditError(f"edit of {name}: the result is not Python ({error})") from None
    [definition] = tree.body
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    ast.increment_lineno(tree, function.__code__.co_firstlineno - 1)
    around = _around(definition, function.__code__.co_freevars)
    code = compile(around, function.__code__.co_filename, "exec")
    # From the outside in; what is wanted is the first of that name.
    while code.co_name != function.__name__:
        [code] = [one for one in code.co_consts if isinstance(one, CodeType)]
    if code.co_freevars != function.__code__.co_freevars:
        raise EditError(
            f"edit of {name}: it uses {code.co_freevars} from around it instead of "
            f"{function.__code__.co_freevars}; cells cannot be exchanged"
        )
    return code


def _around(definition: ast.FunctionDef, free_names: tuple[str, ...]) -> ast.Module:
    """A module with the function in it, in another that has what it uses from around it.

    A method with `super()` uses `__class__`.
    """
    if not free_names:
        return ast.Module([definition], [])
    [outer] = ast.parse(f"def around({', '.join(free_names)}): pass").body
    assert isinstance(outer, ast.FunctionDef)
    outer.body = [definition]
    return ast.Module([outer], [])
