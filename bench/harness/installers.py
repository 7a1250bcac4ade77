"""What installs programs of others into bench/.cache; nothing of the system changes."""

import subprocess
import sys
import tempfile
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache"


def call(command, **options):
    """Runs an installer; its output goes to ours, its failure ends the run."""
    print("+", " ".join(str(word) for word in command), file=sys.stderr, flush=True)
    subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr, **options)


def npm_install(folder, packages):
    """Installs npm packages into the folder's node_modules."""
    folder.mkdir(exist_ok=True)
    # Without one, npm installs into a folder above that has one.
    (folder / "package.json").write_text('{"private": true}\n')
    call(["npm", "install", "--no-audit", "--no-fund", *packages], cwd=folder)


def pip_install(folder, packages):
    """Makes a virtual environment of Python with these packages."""
    call([sys.executable, "-m", "venv", folder])
    call([folder / "bin/python", "-m", "pip", "install", "--quiet", *packages])


def debian_unpack(folder, packages, change=lambda root: None):
    """Downloads Debian packages and unpacks them. `change` is told where they are before they become the folder."""
    # The folder is there with all that belongs in it, or not at all.
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        call(["apt-get", "download", *packages], cwd=scratch)
        root = Path(scratch) / "root"
        for package in sorted(Path(scratch).glob("*.deb")):
            call(["dpkg-deb", "--extract", package, root])
        change(root)
        root.rename(folder)


def debian_version(folder, package):
    """The version of a Debian package that was unpacked into the folder; empty where it was not."""
    changelog = folder / "usr/share/doc" / package / "changelog.Debian.gz"
    if not changelog.exists():
        return ""
    shown = subprocess.run(["zcat", changelog], capture_output=True, check=True).stdout.decode()
    return shown.split("(", 1)[1].split(")", 1)[0]
