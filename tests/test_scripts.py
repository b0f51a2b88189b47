"""A notebook exported as a script, by JupyterLab or nbconvert, is a Python file that Python runs."""

import builtins
import os
import re
import subprocess
import symtable
import sys

import nbformat
import pytest
from nbconvert.exporters import ScriptExporter
from notebook_tools import NOTEBOOKS, ROOT, clean

from vqnotes.course.claims import statement_of

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def exported(path):
    """The text and the extension that "Executable Script" in JupyterLab's menu gives."""
    text, resources = ScriptExporter().from_filename(str(path))
    return text, resources["output_extension"]


def undefined(source):
    """Names that a script looks up and never binds, and that Python does not have by itself."""
    tables, used, bound = [symtable.symtable(source, "script", "exec")], set(), set(dir(builtins)) | {"__file__"}
    for table in tables:
        tables += table.get_children()
        at_top = table.get_type() == "module"
        for one in table.get_symbols():
            used |= {one.get_name()} if one.is_referenced() and (at_top or one.is_global()) else set()
            bound |= {one.get_name()} if at_top and (one.is_assigned() or one.is_imported()) else set()
    return used - bound


@each_notebook
def test_it_is_a_python_file_with_names_that_python_knows(path):
    text, extension = exported(path)
    compile(text, path.stem, "exec")
    assert extension == ".py"
    assert undefined(text) == {"get_ipython"}, "IPython alone has the others: import what is used"
    calls = re.findall(r"except ImportError:.*\n(?: +.*\n|\n)*? +get_ipython\(\)", text)
    assert text.count("get_ipython()") == len(calls) >= 1, "only where a package is missing"


def test_metadata_hold_what_an_export_needs_and_nothing_of_a_machine():
    notebook = nbformat.v4.new_notebook(metadata={"language_info": {"name": "python", "version": "3.11.7"}})
    clean(notebook)
    kept = notebook.metadata["language_info"]
    assert kept["file_extension"] == ".py" and kept["nbconvert_exporter"] == "python" and kept["mimetype"]
    assert "version" not in kept and kept["codemirror_mode"] == {"name": "ipython", "version": 3}


def test_python_runs_it_where_the_module_is_installed(tmp_path):
    """Outside of IPython, as a colleague without Jupyter would: it claims what the notebook claims."""
    (tmp_path / "script.py").write_text(exported(NOTEBOOKS[0])[0], encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    stored = [out.get("text", "") for cell in nbformat.read(NOTEBOOKS[0], 4).cells for out in cell.get("outputs", [])]
    assert claims(done.stdout) == claims("".join(stored)) and claims(done.stdout)


def claims(text):
    return [statement_of(line) for line in text.splitlines() if line.startswith("✓ ")]
