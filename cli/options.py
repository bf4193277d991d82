"""A bundle's inputs as options of the command line: `negative_prompt` becomes `--negative-prompt`, and so on."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import click

from mmrt.runtime import manifest as m
from mmrt.runtime import options
from mmrt.runtime.bundle import MANIFEST, Bundle
from mmrt.runtime.engines import ENGINES
from mmrt.runtime.errors import BundleError
from mmrt.runtime.selection import DEVICES

_SHOWN = 20  # choices
SHAPES = (
    "Sizes that engines are for: NAME=MIN:OPT:MAX of a free dimension, GRAPH.NAME=... of one graph's, NAME=SIZE for "
    "one size alone, size=512x512:512x512:768x768 of pictures; several with commas. Where nothing is said, what "
    "follows from the inputs."
)


class BundleCommand(click.Command):
    """A command on a bundle (its first argument) that takes the bundle's inputs as further options.

    Their values reach the callback as the dict `inputs`, without those that were not given.
    """

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> click.Context:
        """Read the manifest of the bundle among `args` first, so that parsing and --help know its inputs."""
        folders = [arg for arg in args if os.path.isdir(arg)]  # unlike Path's, never an error
        folders.sort(key=lambda each: not os.path.lexists(os.path.join(each, MANIFEST)))
        bundle = folders[0] if folders else None
        if bundle is None:  # then that is the news, and not that its inputs' options are unknown
            extra["ignore_unknown_options"] = True
        command = self if bundle is None else self._with_inputs(Bundle(bundle).manifest)
        return click.Command.make_context(command, info_name, args, *rest, **extra)

    def _with_inputs(self, manifest: m.Manifest) -> BundleCommand:
        if (wrong := options.clash(manifest.inputs)) is not None:
            raise BundleError(f"{manifest.name}: {wrong}")
        copy = type(self)(self.name, callback=self.callback, params=[*self.params], help=self.help)
        named = [(name, spec) for name, spec in manifest.inputs.items() if name != positional(manifest)]
        copy.params += [_option(name, spec) for name, spec in named]
        return copy

    def invoke(self, ctx: click.Context) -> Any:
        """Gather the inputs' values."""
        names = {param.name: param.input for param in self.params if isinstance(param, InputOption)}
        values = {names[key]: ctx.params.pop(key) for key in [*ctx.params] if key in names}
        ctx.params["inputs"] = {name: value for name, value in values.items() if value not in (None, ())}
        return super().invoke(ctx)


def load_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `mmrt.load` that a command takes: they reach it as the dict `loading`."""

    @functools.wraps(command)
    def gathered(*args: Any, **values: Any) -> Any:
        return command(*args, loading={name: values.pop(name) for name, _, _ in own}, **values)

    own = (
        ("memory", "full", "full, or low: a stage's graphs are loaded when it comes and let go after it."),
        ("precision", "auto", "auto, or one that the bundle has."),
        ("engine", "auto", f"auto, {', '.join(ENGINES)}."),
        ("device", "auto", f"{DEVICES}."),
    )
    for name, default, text in own:
        gathered = click.option(f"--{name}", default=default, show_default=True, help=text)(gathered)
    return gathered


def build_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option of `mmrt.load` that those commands take after which a machine may go on to work."""
    text = "Build engines in the background, for the next time, where TensorRT is installed and has none of the bundle."
    return click.option("--build/--no-build", default=True, show_default=True, help=text)(command)


class InputOption(click.Option):
    """An option that is the `input` of the bundle."""

    def __init__(self, name: str, **attributes: Any) -> None:
        super().__init__([*options.flags(name), f"input_{name}"], **attributes)
        self.input = name


def positional(manifest: m.Manifest) -> str | None:
    """The text input that is given without an option's name: the first that must be given."""
    required = [name for name, spec in manifest.inputs.items() if isinstance(spec, m.Text) and spec.default is None]
    return required[0] if required else None


def describe(spec: m.Input) -> tuple[str, str]:
    """What an input takes and what it is when left out, as words."""
    match spec:
        case m.Text():
            without = "none" if spec.optional else "must be given"
            return "text", repr(spec.default) if spec.default is not None else without
        case m.Image():
            return "picture", "must be given" if spec.required else "none"
        case m.Audio():
            return f"recording of up to {spec.seconds} s", "must be given" if spec.required else "none"
        case m.Int():
            return f"{spec.min} to {spec.max}", str(spec.default)
        case m.Float():
            return f"{spec.min:g} to {spec.max:g}", f"{spec.default:g}"
        case m.Choice():
            names = ", ".join(spec.choices[:_SHOWN]) + (", ..." if len(spec.choices) > _SHOWN else "")
            return names, spec.default
        case m.Size():
            return f"WIDTHxHEIGHT, multiples of {spec.multiple} up to {spec.max}", "x".join(map(str, spec.default))
        case m.Count():
            return f"1 to {spec.max}", "1"
        case m.Strings():
            return "text, may be given again", "none"
        case m.Seed():
            return "a whole number; result i takes seed + i", "drawn at random"


def _option(name: str, spec: m.Input) -> InputOption:
    takes, default = describe(spec)
    kinds: dict[type, Any] = {m.Int: int, m.Float: float, m.Count: int, m.Seed: int}
    kind = kinds.get(type(spec), str)
    metavar = {m.Strings: "TEXT", m.Image: "FILE", m.Audio: "FILE", m.Size: "SIZE", m.Choice: "NAME"}.get(type(spec))
    return InputOption(
        name,
        type=kind,
        metavar=metavar,
        multiple=isinstance(spec, m.Image | m.Audio | m.Strings) or getattr(spec, "array", None) is not None,
        help=f"{takes} [{default}]",
    )
