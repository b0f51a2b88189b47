"""Writes the public address of the project into badges, set-up cells and texts.

python tools/stamping.py [OWNER/NAME]     without an argument, those of the git remote

The remote is "origin", or the only one. Links, badges and set-up cells lead to github.com: owner and name are all
that is taken from a remote, whatever its host is called.
"""

import re
import subprocess
import sys
from pathlib import Path

from notebook_tools import ROOT, project, repository

from vqnotes._files import replaced
from vqnotes._printing import say

ADDRESSED = (  # where the address may stand; pyproject.toml, which says what the old one is, comes last
    "*.md", "*.cff", ".zenodo.json", ".github/**/*.md", ".github/**/*.yml", "docs/*.md", "paper/*.md",
    "notebooks/*.ipynb", "pyproject.toml",
)  # fmt: skip
NAME = r"[\w.-]+/[\w.-]+"
NOTICE = re.compile(r"<!-- until stamped -->\n.*?<!-- stamped -->\n\n?", re.S)  # in the README: what to do
REMOTE = re.compile(
    r"(?:\w+://(?:[^/@]+@)?(?P<host>[^/:]+)(?::\d+)?/|(?:[^/@\s]+@)?(?P<alias>[^/:@\s]{2,}):(?!//))(?P<path>[^:\\]+)"
)
AGAIN = "Name them yourself: make stamp REPO=owner/name"


def of_remote(address: str) -> str:
    """Owner and name in the address of a git remote: https, ssh, git or user@host:owner/name, with or without ".git".

    Raises SystemExit for a path, and where there are not just an owner and a name.
    """
    found = REMOTE.fullmatch(address.strip())
    address = re.sub("//[^/@]*@", "//", address)  # no password in a message
    path = found["path"].strip("/").removesuffix(".git").rstrip("/") if found else ""
    if not re.fullmatch(NAME, path):
        raise SystemExit(f"The git remote {address!r} does not say owner/name. {AGAIN}")
    if "github" not in (found["host"] or found["alias"]):
        say(f"{address} may not be on github.com. Badges and links will lead to github.com/{path} all the same.")
    return path


def remote(root: Path = ROOT) -> str:
    """The address of "origin", or of the only remote. Raises SystemExit if there is none, or no git."""

    def git(*words: str) -> str:
        try:
            command = ["git", "-C", str(root), *words]
            return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError) as error:
            said = (getattr(error, "stderr", None) or str(error)).strip()
            raise SystemExit(f"The git remote cannot be asked for ({said}). {AGAIN}") from error

    names = git("remote").split()
    if "origin" not in names and len(names) != 1:
        raise SystemExit(f"There is no git remote called origin, but {names or 'none at all'}. {AGAIN}")
    return git("remote", "get-url", "origin" if "origin" in names else names[0])


def site(repo: str) -> str:
    """The address of the website that the code host serves for a repository, without https://."""
    owner, name = repo.split("/")
    return f"{owner.lower()}.github.io/{name}"


def stamp(repo: str, root: Path = ROOT) -> list[Path]:
    """Writes owner/name into the files of ADDRESSED under `root`, and gives those that changed.

    Where the address goes on with a tag to install or to launch, the tag becomes that of this version. The README's
    notice of what to do goes. An interrupted run can be done again, and one that is done changes nothing.
    Raises SystemExit unless `repo` is owner/name.
    """
    if not re.fullmatch(NAME, repo):
        raise SystemExit(f"REPO must be owner/name, got {repo!r}")
    old = re.compile(rf"((?:github(?:\.com)?|/gh|codespaces\.new)/){re.escape(repository())}(?![\w.-]*\w)")
    old_site = re.compile(rf"(?<![\w.-]){re.escape(site(repository()))}(?![\w.-]*\w)")
    tag = re.compile(rf"((?:github\.com/{re.escape(repo)}@|/gh/{re.escape(repo)}/)v)\d[\d.]*\d")
    changed = []
    for path in [path for pattern in ADDRESSED for path in sorted(root.glob(pattern))]:
        text = path.read_bytes().decode("utf-8")
        new = old_site.sub(site(repo), old.sub(rf"\g<1>{repo}", text))
        new = tag.sub(rf"\g<1>{project('version')}", new)
        if path == root / "README.md":
            new = NOTICE.sub("", new)
        if new != text:
            with replaced(path) as beside:
                beside.write_bytes(new.encode("utf-8"))
            changed.append(path)
    ready = root / ".venv" / "ready"
    if changed and ready.exists():
        ready.touch()  # nothing that is installed depends on the address: no need to set all up anew
    return changed


if __name__ == "__main__":
    if len(sys.argv) > 2:
        raise SystemExit(__doc__)
    repo = sys.argv[1] if len(sys.argv) == 2 else of_remote(remote())
    files = stamp(repo)
    say(f"{repo}: {len(files)} files changed." + (" Look at them with git diff, then commit them." if files else ""))
