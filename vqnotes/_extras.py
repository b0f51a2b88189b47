"""What is only there with `pip install 'vqnotes[course]'`: a diagnosis needs none of it."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def course_extra(what: str) -> Iterator[None]:
    """An import that fails in it says what needs the package, and how to install it."""
    try:
        yield
    except ImportError as error:
        needs = f"{what} needs {error.name}, which is not installed: pip install 'vqnotes[course]'"
        raise ImportError(needs, name=error.name) from error
