"""The command line: `vqnotes diagnose`, `vqnotes tokens`, `vqnotes model`. The exit status is what was found."""

import argparse
import contextlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from vqnotes._printing import say

HEALTHY, ILL, CANNOT_TELL, BAD_INPUT = range(4)
INTERRUPTED = 130

STATUS = """
exit status:
  0  healthy; of ids: all codes are in use, or nearly all
  1  ill: any other verdict, a rate limit too; of ids: part of the codes is in use, or few
  2  cannot tell; also "healthy" with a doubt, a line that begins with "First:"
  3  bad input, or an error on the way
Of several codebooks the worst counts: 1 before 2 before 0.
"""
FILES = """
files: z.npy, z.npz:KEY, z.safetensors:KEY (the key may be left out where there is one array), or raw numbers as
z.bin:DTYPE or z.bin:DTYPE:SHAPE, such as z.bin:float32:-1,64. Pickles (.pt, .ckpt) are not opened.
"""
DIAGNOSE = """
example:
  python -c "import numpy as np; x = np.random.default_rng(0).normal(size=(4096, 4)); np.save('latents.npy', x); np.save('codebook.npy', x[:64] / 99)"
  vqnotes diagnose latents.npy codebook.npy --inputs latents.npy
"""  # noqa: E501
TOKENS = """
example:
  python -c "import numpy as np; np.random.default_rng(0).integers(0, 600, 100000).astype('uint16').tofile('ids.bin')"
  vqnotes tokens ids.bin --dtype uint16 --codes 8192
"""
MODEL = """
example:
  python -c "open('checkpoint.py', 'w').write('import torch\\nfrom vqnotes import VectorQuantizer, models\\ndef build():\\n    torch.manual_seed(0)\\n    return models.mlp_autoencoder(4, VectorQuantizer(16, 2))')"
  python -c "import numpy as np; np.save('inputs.npy', np.random.default_rng(0).normal(size=(4096, 4)))"
  vqnotes model checkpoint.py:build --data inputs.npy
"""  # noqa: E501


class _Parser(argparse.ArgumentParser):
    """A parser whose errors have the status of bad input."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(BAD_INPUT, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status. The report goes to stdout, everything else to stderr."""
    options = _parser().parse_args(arguments)
    try:
        for path in (options.html, options.json):
            _check_target(path)
        with contextlib.redirect_stdout(sys.stderr):  # what a model prints is no report
            found = options.run(options)
        _deliver(found, options)
        return status(found)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ValueError, OSError, ImportError) as error:
        say(f"vqnotes {options.command}: {error}", file=sys.stderr)
    except (Exception, SystemExit):  # what exits by itself, as a model's file may, has a status that is no verdict
        traceback.print_exc()
    return BAD_INPUT


def status(found: Any) -> int:
    """The exit status of a diagnosis, or of several: that of the worst."""
    from vqnotes.diagnosis.keeping import with_names
    from vqnotes.diagnosis.tokens import SEEN

    each = set()
    for _, one in with_names(found):
        if one.verdict == "cannot tell" or (one.verdict == "healthy" and one.doubts):
            each.add(CANNOT_TELL)
        else:
            each.add(HEALTHY if one.verdict in ("healthy", *SEEN) else ILL)
    return next(one for one in (ILL, CANNOT_TELL, HEALTHY) if one in each)


# ---------------------------------------------------------------- what can be asked


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="vqnotes",
        description="Which collapse is it, by which evidence, and what to try.",
        epilog=f"{DIAGNOSE}\nvqnotes COMMAND --help says more.\n{STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_diagnose(commands)
    _add_tokens(commands)
    _add_model(commands)
    return parser


def _command(commands: Any, name: str, says: str, example: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=says,
        description=f"{says[0].upper()}{says[1:]}.",
        epilog=f"{FILES}{example}{STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--html", metavar="FILE", help="also write the report, with figures, as one file of HTML")
    command.add_argument("--json", metavar="FILE", help="also write it as JSON; - for stdout, in place of the report")
    command.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    return command


def _add_progress(command: argparse.ArgumentParser) -> None:
    says = "a bar on stderr (default: where the work is long)"
    command.add_argument("--progress", action=argparse.BooleanOptionalAction, default=None, help=says)


def _add_diagnose(commands: Any) -> None:
    one = _command(commands, "diagnose", "the verdict on a codebook, from latents and codes", DIAGNOSE)
    one.add_argument("latents", help="(N, D) or (N, places ..., D), or (N, D, ...) with --channel-axis 1")
    one.add_argument("codebook", help="(K, D)")
    one.add_argument("--inputs", metavar="FILE", help="what was encoded; without it the encoder is not judged")
    one.add_argument("--labels", metavar="FILE", help="a whole number for each latent, or for each input")
    one.add_argument("--index", metavar="FILE", help="the model's own choice of codes")
    one.add_argument("--mask", metavar="FILE", help="True where a latent counts")
    one.add_argument("--reconstruction", metavar="FILE", help="the model's output, of the inputs' shape")
    one.add_argument("--channel-axis", type=int, metavar="AXIS", help="which axis of the latents holds D: -1 or 1")
    one.add_argument("--places", type=_axes, metavar="AXES", help="axes of the inputs along which latents run: 2,3")
    one.add_argument("--kind", help="how the codes come about, such as 'EMA codebook', for advice that fits")
    _add_progress(one)
    one.set_defaults(run=_diagnose)


def _add_tokens(commands: Any) -> None:
    one = _command(commands, "tokens", "how many codes ids use, from ids alone", TOKENS)
    one.add_argument("ids", help="(items, ..., length) or (length,), of any integer type")
    one.add_argument("--codes", type=int, nargs="+", required=True, metavar="K", help="codes, or of each codebook")
    one.add_argument("--dtype", help="of a raw file, such as uint16")
    one.add_argument("--length", type=int, metavar="L", help="ids of an item, where the file has one axis")
    one.add_argument("--padding", type=int, nargs="+", metavar="ID", help="ids that do not count")
    one.add_argument("--stages-axis", type=int, metavar="AXIS", help="the axis that runs over several codebooks")
    one.add_argument("--collisions", action="store_true", help="count items that share all of their ids")
    one.add_argument("--pairs", type=int, default=2**20, metavar="N", help="pairs of neighbours that are counted")
    one.set_defaults(run=_tokens)


def _add_model(commands: Any) -> None:
    one = _command(commands, "model", "the verdict on each quantiser of a model, which a file of yours makes", MODEL)
    one.add_argument(
        "model", metavar="FILE.py:NAME", help="a function without arguments that returns it, or the model"
    )
    one.add_argument("--data", required=True, metavar="FILE", help="inputs (N, ...), or FILE.py:NAME for batches")
    one.add_argument("--labels", metavar="FILE", help="a whole number for each input")
    one.add_argument("--places", type=_axes, metavar="AXES", help="axes of the inputs along which latents run: 2,3")
    _add_progress(one)
    one.set_defaults(run=_model)


def _axes(written: str) -> tuple[int, ...]:
    return tuple(int(one) for one in written.split(","))


_axes.__name__ = "list of axes such as 2,3"  # argparse says it of what is none


# ---------------------------------------------------------------- what is done


def _diagnose(options: argparse.Namespace) -> Any:
    from vqnotes.diagnosis import diagnose

    beside = {name: getattr(options, name) for name in ("labels", "inputs", "index", "mask", "reconstruction")}
    return diagnose(
        _array(options.latents),
        _array(options.codebook),
        **{name: _array(one) for name, one in beside.items()},
        channel_axis=options.channel_axis,
        places=options.places,
        kind=options.kind,
        seed=options.seed,
        progress=options.progress,
    )


def _tokens(options: argparse.Namespace) -> Any:
    from vqnotes.diagnosis import diagnose_tokens

    index = _array(options.ids, options.dtype)
    if options.length is not None:
        if index.ndim != 1 or options.length < 1 or len(index) % options.length:
            raise ValueError(f"--length {options.length} does not divide ids of shape {tuple(index.shape)}")
        index = index.reshape(-1, options.length)
    size = options.codes if len(options.codes) > 1 else options.codes[0]
    return diagnose_tokens(
        index,
        size,
        padding=options.padding,
        stages_axis=options.stages_axis,
        collisions=options.collisions,
        pairs=options.pairs,
        seed=options.seed,
    )


def _model(options: argparse.Namespace) -> Any:
    from torch import nn

    from vqnotes.diagnosis import diagnose_model

    files: dict[Path, ModuleType] = {}
    model = _named_in(options.model, files, nn.Module)
    data = _named_in(options.data, files, ()) if ".py:" in options.data else _array(options.data)
    return diagnose_model(
        model,
        data,
        labels=_array(options.labels),
        places=options.places,
        seed=options.seed,
        progress=options.progress,
    )


def _array(given: str | None, dtype: str | None = None) -> Any:
    from vqnotes.diagnosis.arrays import array_at

    return None if given is None else array_at(given, dtype)


def _named_in(given: str, files: dict[Path, ModuleType], kind: Any) -> Any:
    """What `FILE.py:NAME` names: it is called, unless it is of this kind or cannot be. files: those that have run."""
    from vqnotes.diagnosis.arrays import path_and_rest

    path, name = path_and_rest(given)
    if path.suffix != ".py" or not name:
        raise ValueError(f"need a Python file and a name in it, as in checkpoint.py:build, got {given!r}")
    try:
        files[path] = files.get(path) or _run(path)
        found = getattr(files[path], name)
        return found() if callable(found) and not isinstance(found, kind) else found
    except (Exception, SystemExit) as error:  # of somebody else's file: where it was is worth more than what
        traceback.print_exc()
        raise ValueError(f"{given} stopped with {type(error).__name__}: {error}") from error


def _run(path: Path) -> ModuleType:
    """Runs a file as Python would: what stands beside it can be imported."""
    sys.path.insert(0, str(path.resolve().parent))
    name = f"given_{path.stem}"  # a file may be called as a package is
    spec = spec_from_file_location(name, path)
    module = module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules[name] = module
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


# ---------------------------------------------------------------- what comes of it


def _check_target(path: str | None) -> None:
    """ValueError for a file that cannot be written, before the work and not after it."""
    if path not in (None, "-") and (os.path.isdir(path) or not Path(path).resolve().parent.is_dir()):
        raise ValueError(f"{path} cannot be written: it is a folder, or its folder is not there")


def _deliver(found: Any, options: argparse.Namespace) -> None:
    """Prints and writes what was asked for."""
    from vqnotes.diagnosis import keeping

    if options.json == "-":
        _print(json.dumps(keeping.as_dict(found), indent=1, allow_nan=False))
    else:
        reports = [f"{name}\n{one}" if name else f"{one}" for name, one in keeping.with_names(found)]
        _print("\n\n".join(reports))
        if options.json:
            keeping.write(found, options.json)
    if options.html:
        drawn = find_spec("matplotlib") is not None and find_spec("seaborn") is not None
        if not drawn:
            say("no figures: they need pip install 'vqnotes[course]'", file=sys.stderr)
        keeping.write_page(found, options.html, figures=drawn)


def _print(text: str) -> None:
    try:
        say(text, flush=True)
    except BrokenPipeError:  # who reads has seen enough; the status still counts
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
