"""Modules' own `forward`s, exchanged for a while: where torch cannot export what a library has written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch


@contextmanager
def forwards(module: torch.nn.Module, others: Mapping[type, Callable[..., Any]]) -> Iterator[None]:
    """Inside, modules in it of the classes `others` are called by those functions, whose first argument they are."""
    exchanged = [each for each in module.modules() if type(each) in others]
    for each in exchanged:
        each.forward = partial(others[type(each)], each)
    try:
        yield
    finally:
        for each in exchanged:
            del each.forward
