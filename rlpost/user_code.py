"""Functions that a recipe names as `package.module:function`."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from rlpost.errors import ConfigError


def resolve(field: str, path: str | None) -> Callable[..., Any]:
    """Return the function that `package.module:function` names.

    Raises:
        ConfigError: the form is wrong, or there is no such module or function.
    """
    module_name, _, function_name = (path or "").partition(":")
    if not module_name or not function_name:
        raise ConfigError(f"{field} must have the form package.module:function, got {path!r}")
    try:
        module = import_module(module_name)
    except Exception as error:  # a user's module may raise anything on import
        raise ConfigError(f"{field}={path}: cannot import {module_name}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"{field}={path}: {module_name} has no function {function_name}")
    return function
