"""What can go wrong, by who must act. A message is one line: the thing, what it is, what was wanted."""


class MmrtError(Exception):
    """Base of all errors that are not bugs; the command line prints its message and exits 1."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """The text with its line breaks as spaces, and printable."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """The text with what a terminal would act on as escapes."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class BundleError(MmrtError):
    """The bundle is damaged, hostile or of another version: export or fetch it again."""


class EngineError(MmrtError):
    """This machine cannot run the graph: another engine, device or driver is needed."""


class UnreadyError(EngineError):
    """This machine could run the graph after a command that the message names."""


class UnbuiltError(UnreadyError):
    """What is missing is an engine, which can be built here."""


class RequestError(MmrtError, ValueError):
    """The caller asked for something that the bundle does not offer."""


class ExportError(MmrtError):
    """The checkpoint cannot become a bundle: its author or the exporter must act."""


class EngineWarning(UserWarning):
    """This machine does something in a slower way than was hoped for."""


class RequestWarning(UserWarning):
    """Something in a request was changed to fit the model, such as a prompt that was cut."""
