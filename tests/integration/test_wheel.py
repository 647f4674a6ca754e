"""The built wheel, away from the repository, with nothing but its base dependencies."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(REPOSITORY)], check=True, capture_output=True, timeout=120)
    (built,) = folder.glob("rlpost-*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that holds the wheel and links to its base dependencies only."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    command = [
        str(Path(sys.executable).with_name("uv")),
        "pip",
        "install",
        "--offline",
        "--no-deps",
        "--python",
        str(python),
    ]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True, timeout=120)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    installed = next(site.glob("rlpost-*.dist-info"))
    for requirement in base_requirements(Distribution.at(installed)):
        for entry in top_level(distribution(requirement)):
            target = site / entry.name
            if not target.exists():
                target.symlink_to(entry)
    return folder


def base_requirements(package: Distribution) -> set[str]:
    """Return the names of what a package needs without extras, all the way down."""
    found: set[str] = set()
    todo = [(package, frozenset({""}))]
    while todo:
        current, extras = todo.pop()
        for line in current.requires or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in extras):
                continue
            try:
                needed = distribution(requirement.name)
            except PackageNotFoundError:
                continue
            if requirement.name not in found:
                found.add(requirement.name)
                todo.append((needed, frozenset({"", *requirement.extras})))
    return found


def top_level(package: Distribution) -> Iterator[Path]:
    """Yield the files and folders that a package put into site-packages."""
    names = {file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "bin")}
    for name in sorted(names - {"__pycache__"}):
        yield Path(str(package.locate_file(name)))


def run(
    environment: Path, *arguments: str, cwd: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    clean = {
        "PATH": f"{environment / 'bin'}:/usr/bin:/bin",
        "HOME": str(cwd),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [str(environment / "bin" / "rlpost"), *arguments],
        cwd=cwd,
        env=clean | variables,
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_the_wheel_holds_code_recipes_and_the_plugin(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        text = archive.read(entry_points).decode()
    roots = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert roots == {"rlpost", "actors"}
    recipes = {str(p.relative_to(REPOSITORY)) for p in (REPOSITORY / "recipes").rglob("*.yaml")}
    assert recipes
    assert {f"rlpost/{name}" for name in recipes} <= names
    assert "rlpost/cluster/slurm_job.sh" in names
    assert "rlpost_weights = actors.weights:register" in text
    assert "rlpost = rlpost.cli:main" in text


def test_help_away_from_the_repository(environment: Path, tmp_path: Path) -> None:
    result = run(environment, "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for command in ("train", "eval", "warmstart", "export", "doctor"):
        assert command in result.stdout


def test_doctor_names_the_extra_that_is_missing(environment: Path, tmp_path: Path) -> None:
    result = run(environment, "doctor", cwd=tmp_path)
    said = result.stdout + result.stderr
    assert "Traceback" not in said
    assert "torch" in said
    assert "rlpost[cpu]" in said


def test_a_recipe_composes_away_from_the_repository(environment: Path, tmp_path: Path) -> None:
    result = run(environment, "train", "recipe=quickstart", "seed=7", "--cfg", "job", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "seed: 7" in result.stdout
    assert os.listdir(tmp_path) == []


def test_training_without_engines_says_which_extra_brings_them(
    environment: Path, tmp_path: Path
) -> None:
    result = run(environment, "train", "recipe=quickstart", "steps=1", cwd=tmp_path)
    said = result.stdout + result.stderr
    assert result.returncode != 0
    assert "Traceback" not in said
    assert "rlpost[cpu]" in said


def test_a_decoy_called_actors_is_refused(environment: Path, tmp_path: Path) -> None:
    decoy = tmp_path / "actors.py"
    decoy.write_text("def launch(*_):\n    raise SystemExit('the decoy ran')\n")
    result = run(
        environment, "train", "recipe=quickstart", "steps=1", cwd=tmp_path, PYTHONPATH=str(tmp_path)
    )
    said = result.stdout + result.stderr
    assert result.returncode != 0
    assert "the decoy ran" not in said
    assert str(decoy) in said
