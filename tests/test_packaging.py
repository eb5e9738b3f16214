"""What is shipped: the wheel, the public names, the weight of the first import, the tidiness of the files."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from pkgutil import iter_modules

import pytest

import robustgen
from tests.helpers import MAPPED, ROOT, copy_repository, repository_files

FORBIDDEN_WORDS = re.compile(r"(?<![\w.~})/-])/(?:home|root|Users|tmp|opt|work)/\w")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel built from a copy of the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    copy_repository(folder / "source")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(folder / "source"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def in_a_fresh_python(code: str) -> str:
    """What `code` prints in an interpreter of its own, started at the root of the repository."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_holds_every_file_of_the_packages(wheel: zipfile.ZipFile) -> None:
    """Every file of robustgen/ and of the mapped folders is in the wheel under robustgen/, and nothing else is."""
    expected = set()
    for path in repository_files():
        if path.parts[0] == "robustgen":
            expected.add(path.as_posix())
        elif path.parts[0] in MAPPED and len(path.parts) > 1:
            expected.add(f"robustgen/{path.as_posix()}")
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert expected == shipped


def test_wheel_keeps_one_name_at_the_top(wheel: zipfile.ZipFile) -> None:
    """Nothing generic such as `attacks` lands in site-packages."""
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert top == {"robustgen", f"robustgen-{robustgen.__version__}.dist-info"}


def test_wheel_carries_licence_and_command(wheel: zipfile.ZipFile) -> None:
    """The licence text and the entry point of the command are in the metadata."""
    info = f"robustgen-{robustgen.__version__}.dist-info"
    assert wheel.read(f"{info}/licenses/LICENSE").decode() == (ROOT / "LICENSE").read_text()
    assert "robustgen = robustgen.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


def test_every_package_is_listed() -> None:
    """Each folder with an __init__.py is a package of pyproject.toml, as setuptools does not look for them."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = [path.parent for path in repository_files() if path.name == "__init__.py" and path.parts[0] != "tests"]
    expected = {".".join(f.parts if f.parts[0] == "robustgen" else ("robustgen", *f.parts)) for f in folders}
    assert expected == set(listed)


def test_public_names_resolve() -> None:
    """Every name of robustgen.__all__ can be had, and dir() knows it."""
    for name in robustgen.__all__:
        assert getattr(robustgen, name) is not None
    assert set(robustgen.__all__) <= set(dir(robustgen))


def test_no_module_hides_a_public_name() -> None:
    """No module is called like a public name: importing it would put the module in the place of the function."""
    modules = {module.name for module in iter_modules(robustgen.__path__)}
    assert set() == modules & set(robustgen.__all__)


def test_unknown_public_name_is_an_attribute_error() -> None:
    """A name that does not exist fails as it does for any module."""
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        robustgen.no_such_name  # noqa: B018  # the access is what is tested


def test_import_is_light() -> None:
    """`import robustgen` brings neither torch nor numpy."""
    code = "import sys, robustgen; print(sorted({'torch', 'numpy', 'diffusers'} & set(sys.modules)))"
    assert in_a_fresh_python(code).strip() == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["eval", "--help"]])
def test_help_is_light(arguments: list[str]) -> None:
    """Help is printed without torch, numpy or diffusers."""
    code = f"""
import sys
sys.argv = ["robustgen", *{arguments!r}]
from robustgen.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("heavy:", sorted({{"torch", "numpy", "diffusers"}} & set(sys.modules)))
"""
    said = in_a_fresh_python(code).strip().splitlines()
    assert said[-1] == "heavy: []"
    assert any("eval" in line for line in said[:-1])


def text_of(path: Path) -> str | None:
    """The text of a file of the repository, or None where it is not text."""
    try:
        return (ROOT / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def test_python_files_stay_readable() -> None:
    """No Python file is longer than 400 lines."""
    long = {
        str(p): n for p in repository_files() if p.suffix == ".py" and (n := len((text_of(p) or "").splitlines())) > 400
    }
    assert long == {}


def test_files_name_no_machine() -> None:
    """No text file holds an absolute path of the machine it was written on."""
    found = []
    for path in repository_files():
        for number, line in enumerate((text_of(path) or "").splitlines(), start=1):
            if hit := FORBIDDEN_WORDS.search(line):
                found.append(f"{path}:{number}: {line[hit.start() : hit.start() + 40]}")
    assert found == []


@pytest.mark.parametrize(("line", "expected"), [
    ("see /" + "home/ada/data", True),
    ('Path("/' + 'tmp/x")', True),
    ("https://example.org/home/page", False),
    ("runs/tmp-1/x", False),
    ("${TMPDIR}/run/x", False),
])  # fmt: skip
def test_machine_paths_are_told_from_others(line: str, *, expected: bool) -> None:
    """The pattern finds absolute paths of machines and leaves addresses and relative paths alone."""
    assert bool(FORBIDDEN_WORDS.search(line)) is expected


def test_dependencies_have_lower_bounds() -> None:
    """Each requirement of the project and its extras says from which version on it was tried."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    unbounded = [r for r in wanted if not re.search(r">=|<", r) and not r.startswith("robustgen[")]
    assert unbounded == []
