"""What runs on the code host: workflows whose commands exist, with pinned actions and no right that they do not need.

(Their syntax is for actionlint to judge, which `tests.yml` runs.)
"""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from notebook_tools import ROOT, project
from tools_by_hand import commands_of, targets

FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = {path.stem: path for path in sorted(FOLDER.glob("*.yml"))}
RIGHTS = {  # what a job may do beside reading
    ("pages", "publish"): {"pages": "write", "id-token": "write"},
    ("release", "release"): {"contents": "write"},
    ("release", "publish"): {"id-token": "write"},
}
OTHERS = {  # commands that are no target of the Makefile
    ("tests", "pipx"),
    ("colab", "git"),
    ("release", "git"),
    ("release", "echo"),
    ("release", "gh"),
}


def parsed(name):
    content = yaml.safe_load(WORKFLOWS[name].read_text(encoding="utf-8"))
    content["on"] = content.pop(True)  # what YAML makes of "on"
    return content


def jobs():
    return [(name, key, job) for name in WORKFLOWS for key, job in parsed(name)["jobs"].items()]


def steps():
    return [(name, step) for name, _, job in jobs() for step in job["steps"]]


def test_the_workflows_that_the_page_lists_are_there():
    page = (ROOT / "docs" / "publishing.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+)\.yml` \|", page, re.M)) == sorted(WORKFLOWS)


def test_commands_are_found_in_a_script():
    assert commands_of("make a && b 'c; d' | e\nf") == [["make", "a"], ["b", "c; d"], ["e"], ["f"]]
    assert {"lab", "test", "stamp", "grade-locked"} <= targets().keys() and "$(ready)" not in targets()


def test_every_command_is_one_that_the_project_has():
    seen = 0
    for name, step in steps():
        for command in commands_of(step.get("run", "")):
            seen += 1
            if command[0] == "make":
                assert command[1] in targets(), (name, command)
            elif command[:3] == ["python", "-m", "tools"]:
                from tools.__main__ import COMMANDS

                assert command[3] in COMMANDS, (name, command)
            else:
                assert (name, command[0]) in OTHERS, (name, command)
    assert seen > 10


def test_files_that_a_command_or_a_trigger_names_are_there():
    for name in WORKFLOWS:
        text = WORKFLOWS[name].read_text(encoding="utf-8")
        named = set(re.findall(r"\b(?:tests|tools|notebooks|docs)/[\w./-]+\.\w+", text)) | {"constraints.txt"}
        assert all((ROOT / one).exists() for one in named), name


def test_actions_are_pinned_to_a_commit_with_their_version_beside_it():
    for name, path in WORKFLOWS.items():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if "uses:" in line]
        for line in lines:
            assert re.search(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), (name, line)
    pins = re.findall(r"uses: (\S+)@(\w+)", "".join(path.read_text(encoding="utf-8") for path in WORKFLOWS.values()))
    assert len({action for action, _ in pins}) == len(set(pins)), "one version of each action"
    (update,) = yaml.safe_load((FOLDER.parent / "dependabot.yml").read_text(encoding="utf-8"))["updates"]
    assert update["package-ecosystem"] == "github-actions"


def test_a_workflow_may_read_and_a_job_no_more_than_it_needs():
    for name in WORKFLOWS:
        assert parsed(name)["permissions"] == {"contents": "read"}, name
    given = {(name, key): job["permissions"] for name, key, job in jobs() if "permissions" in job}
    assert given == RIGHTS
    for name, step in steps():
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False, name


def test_no_text_of_a_stranger_gets_into_a_command():
    for name, step in steps():
        assert "${{" not in step.get("run", ""), name
        assert "pull_request_target" not in parsed(name)["on"]


def test_every_job_ends_by_itself():
    assert all(job["timeout-minutes"] <= 120 for _, _, job in jobs())


def test_the_matrix_has_every_python_and_every_system():
    matrix = parsed("tests")["jobs"]["unit"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.10", "3.11", "3.12", "3.13"]
    lowest = re.search(r'requires-python = ">=(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))[1]
    assert matrix["python"][0] == lowest
    assert {one.split("-")[0] for one in matrix["os"]} == {"ubuntu", "macos", "windows"}


def test_nothing_but_a_release_is_published_by_hand_and_nothing_by_a_pull_request():
    assert set(parsed("release")["on"]) == {"workflow_dispatch"}
    assert "pull_request" in parsed("tests")["on"]
    assert [name for name in WORKFLOWS if "pull_request" in parsed(name)["on"]] == ["tests"]


def test_the_site_is_stamped_and_what_is_built_is_what_is_served():
    build = parsed("pages")["jobs"]["build"]["steps"]
    runs = [step["run"] for step in build if "run" in step]
    assert runs == ["make stamp", "make book"]
    assert 'build(ROOT / "build" / "book")' in (ROOT / "tools" / "book.py").read_text(encoding="utf-8")
    assert build[-1]["with"]["path"] == "build/book"


# ---------------------------------------------------------------- forms, launchers, containers


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem
)
def test_an_issue_form_has_what_the_code_host_asks_for(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.stem == "config":
        assert all({"name", "url", "about"} == link.keys() for link in form["contact_links"])
        return
    assert form["name"] and form["description"] and form["body"]
    ids = [part["id"] for part in form["body"]]
    assert len(set(ids)) == len(ids)
    for part in form["body"]:
        assert part["type"] in {"input", "textarea", "dropdown", "markdown", "checkboxes"}
        assert part["attributes"]["label"]


def test_the_launchers_install_what_the_project_is():
    lines = (ROOT / "binder" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    options = [line for line in lines if not line.startswith("#")]
    assert options[1:] == ["-c ../constraints.txt", ".[course]"]
    assert re.fullmatch(r"python-3\.1[0-3]\n", (ROOT / "binder" / "runtime.txt").read_text(encoding="utf-8"))
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert commands_of(container["postCreateCommand"]) == [["python", "-m", "tools", "setup"]]
    index = container["containerEnv"]["PIP_EXTRA_INDEX_URL"]
    assert options[0] == f"--extra-index-url {index}"
    assert {parsed(name).get("env", {}).get("PIP_EXTRA_INDEX_URL") for name in WORKFLOWS} == {index}
    assert index in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_every_route_brings_the_extension_of_jupyterlab():
    """With a wheel, as one of its data files; where the install is editable, by the path to look for it."""
    (source,) = (ROOT / "tools" / "labextensions").iterdir()
    said = json.loads((source / "package.json").read_text(encoding="utf-8"))
    assert (said["name"], said["version"]) == (source.name, project("version"))
    script = (source / said["jupyterlab"]["_build"]["load"]).read_text(encoding="utf-8")
    assert f"'{said['name']}'" in script
    place, pattern = f"share/jupyter/labextensions/{source.name}", source.relative_to(ROOT).as_posix()
    assert f'"{place}" = ["{pattern}/*"]\n' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert container["remoteEnv"] == {"JUPYTER_PATH": "${containerWorkspaceFolder}/tools"}
    for name in ("Makefile", "README.md", "tools/__main__.py"):
        assert "--LabApp.extra_labextensions_path=tools/labextensions" in (ROOT / name).read_text(encoding="utf-8")


def test_jupyterlab_finds_the_extension_by_the_path_of_the_container():
    config = pytest.importorskip("jupyterlab_server.config")
    found = config.get_federated_extensions(jupyter_path("labextensions", path=ROOT / "tools"))
    assert found["vqnotes-alt"]["ext_dir"] == str(ROOT / "tools" / "labextensions")


def jupyter_path(name, path):
    """Where Jupyter looks with this JUPYTER_PATH."""
    code = f"from jupyter_core.paths import jupyter_path; print(*jupyter_path({name!r}), sep='\\n')"
    environment = os.environ | {"JUPYTER_PATH": str(path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8")
    return done.stdout.splitlines()


def test_the_container_for_grading_is_locked():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", "")
    (line,) = [line for line in makefile.splitlines() if "$(CONTAINER) run" in line]
    for option in (
        "--network none",
        "--read-only",
        "--cap-drop ALL",
        "no-new-privileges",
        "--pids-limit",
        "--memory",
    ):
        assert option in line, option
    assert ":/handed_in:ro" in line and line.count(":/grades") == 1
    recipe = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (entry, words) = [json.loads(line.split(" ", 1)[1]) for line in recipe.splitlines() if line[:3] in ("ENT", "CMD")]
    assert entry == ["python", "tools/handouts.py", "grade"] and words == ["/handed_in", "/grades"]
    for source in re.findall(r"^COPY (.+) \S+$", recipe, re.M):
        assert all((ROOT / one).exists() for one in source.split()), source
    assert "USER nobody" in recipe
