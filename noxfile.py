"""The checks of this project: `nox` runs all of them, `nox -s lint` one.

An environment with torch takes gigabytes, so sessions use the one that nox is installed in (`pip install -e '.[dev]'`).
`nox -db venv` gives every session an environment of its own.
"""

from __future__ import annotations

import re
import shutil
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory

import nox

nox.options.default_venv_backend = "none"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests", "wheel", "docs", "interop"]

ROOT = Path(__file__).resolve().parent
MAPPED = ("attacks", "benchmarks", "leaderboard", "purify")  # folders installed as robustgen.<name>


def scripts(session: nox.Session) -> Path:
    """The folder of executables to use: nox's own environment, or the session's where it has one."""
    if session.venv_backend == "none":
        return Path(sysconfig.get_path("scripts"))
    session.install("-q", "-e", ".[dev]")
    return Path(session.bin)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting and spelling."""
    bin_ = scripts(session)
    session.run(str(bin_ / "ruff"), "check", ".", external=True)
    session.run(str(bin_ / "ruff"), "format", "--check", ".", external=True)
    session.run(str(bin_ / "typos"), external=True)


@nox.session
def types(session: nox.Session) -> None:
    """Mypy strict, on a tree of links in which the folders stand where they are imported from."""
    bin_ = scripts(session)
    tree = ROOT / "build" / "types"
    expected = _link_modules(tree)
    with session.chdir(tree):
        command = (str(bin_ / "mypy"), "--config-file", str(ROOT / "pyproject.toml"), "-p", "robustgen")
        said = str(session.run(*command, external=True, silent=True))
    session.log(said.strip())
    checked = re.search(r"in (\d+) source files?", said)
    if checked is None or int(checked[1]) != expected:
        session.error(f"expected mypy to check {expected} files, it said: {said.strip()}")


@nox.session
def tests(session: nox.Session) -> None:
    """Every test that needs neither a GPU nor a network, slow ones included; arguments after -- go to pytest."""
    python = scripts(session) / "python"
    which = "not gpu and not network and not interop"
    session.run(str(python), "-m", "pytest", "-q", "-m", which, *session.posargs, external=True)


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel from a clean copy, install it outside the checkout and use it there."""
    python = str(scripts(session) / "python")
    with TemporaryDirectory(prefix="robustgen-wheel-") as folder:
        work = Path(folder).resolve()
        built = _build(session, python, work)
        fresh = _environment(session, python, work / "venv")
        install = ("-m", "pip", "--python", str(fresh), "install", "-q", "--no-deps", str(built))
        session.run(python, *install, external=True)
        with session.chdir(work):
            where = "import robustgen.attacks; print(robustgen.attacks.__file__)"
            found = str(session.run(str(fresh / "bin" / "python"), "-c", where, external=True, silent=True)).strip()
            if not Path(found).is_relative_to(fresh):
                session.error(f"expected robustgen.attacks from {fresh}, got {found}")
            session.run(str(fresh / "bin" / "robustgen"), "--help", external=True, silent=True)
            session.run(str(fresh / "bin" / "robustgen"), "list", "classifiers", external=True)
        session.log(f"{built.name}: {built.stat().st_size / 1e6:.1f} MB")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site (extra `docs`) into build/site, warnings being errors, and see that it fetches nothing."""
    python = str(scripts(session) / "python")
    if session.venv_backend != "none":
        session.install("-q", "-e", ".[docs]")
    _link_modules(ROOT / "build" / "site-modules")
    session.run(python, "-m", "mkdocs", "build", "--clean", external=True, env={"NO_MKDOCS_2_WARNING": "1"})
    session.run(python, "-m", "robustgen.benchmarks.site", "build/site", external=True)


@nox.session
def interop(session: nox.Session) -> None:
    """RobustBench as the registry has it, in an environment of its own; torch and the like are borrowed."""
    python = str(scripts(session) / "python")
    with TemporaryDirectory(prefix="robustgen-interop-") as folder:
        fresh = _environment(session, python, Path(folder).resolve() / "venv")
        wanted = ("robustbench==1.1.1", "pyautoattack>=0.2")
        pip = ("-m", "pip", "--python", str(fresh), "install", "-q", "--retries", "1", "--timeout", "20", *wanted)
        try:
            session.run(python, *pip, external=True)
        except nox.command.CommandFailed:
            session.error(f"{' and '.join(wanted)} could not be installed; this session needs a package registry.")
        tests = ("-m", "pytest", "-q", "-m", "interop", "-p", "no:cacheprovider", "tests/test_interop.py")
        session.run(str(fresh / "bin" / "python"), *tests, external=True)


def _build(session: nox.Session, python: str, work: Path) -> Path:
    """Build the wheel from a copy, as a `build/lib` left in the checkout by an older build would end up in it."""
    copy = work / "source"
    for name in ("robustgen", *MAPPED):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, copy / name)
    command = ("-m", "build", "--wheel", "--no-isolation", "--outdir", str(work), str(copy))
    session.run(python, *command, external=True, silent=True)
    shutil.rmtree(copy)
    (built,) = work.glob("*.whl")
    return built


def _link_modules(tree: Path) -> int:
    """Links to every Python file, in folders that stand where they are imported from; how many there are."""
    shutil.rmtree(tree, ignore_errors=True)
    made = 0
    for folder in ("robustgen", *MAPPED):
        home = tree if folder == "robustgen" else tree / "robustgen"
        # Only Python files: mypy counts folders of data as packages.
        for source in (ROOT / folder).rglob("*.py"):
            link = home / source.relative_to(ROOT)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source)
            made += 1
    return made


def _environment(session: nox.Session, python: str, fresh: Path) -> Path:
    """A new environment that sees the packages of `python` after its own; of those no .pth file is run."""
    session.run(python, "-m", "venv", "--without-pip", str(fresh), external=True)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    theirs = str(session.run(python, "-c", ask, external=True, silent=True)).strip()
    (ours,) = (fresh / "lib").glob("python*/site-packages")
    (ours / "dependencies.pth").write_text(f"{theirs}\n")
    return fresh
