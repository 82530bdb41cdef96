"""`pipeline init`: the files of a new project, from a recipe.

A recipe is a folder below `recipes/` with what differs from the recipe `default`, the embedded default: params.yaml, and
dvc.yaml where its stages differ. The first comment line of the first of them says in one line what the recipe is. `recipes/` lies
beside this package in a checkout and where it is installed; `default` is made of links to the files of the checkout itself.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import yaml

from pipeline.summary import print_descriptions
from stages.config import ConfigError, suggest
from stages.errors import InputError
from storage.files import write_durably

RECIPES = Path(__file__).parents[1] / "recipes"
DEFAULT = "default"
FILES = {"params.yaml": "params.yaml", "dvc.yaml": "dvc.yaml", ".gitignore": "gitignore", ".dvcignore": "dvcignore"}
"""File of a project -> its name in a recipe's folder, where it must not be at work."""
BESIDE = {".git", ".venv"}
"""What a folder may hold and still count as empty: a project may begin as a repository or an environment."""
SHOWN = 5
"""Of a folder that is not empty, how many names a message lists."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A folder below `recipes/`."""

    name: str

    @property
    def files(self) -> dict[str, Path]:
        """File of a project -> where its content stands: in this recipe's folder, else in that of `default`."""
        of_the_recipe = {file: RECIPES / self.name / stored for file, stored in FILES.items()}
        return {
            file: path if path.is_file() else RECIPES / DEFAULT / FILES[file] for file, path in of_the_recipe.items()
        }

    @property
    def needs_another_project(self) -> bool:
        """Whether it reads what a project beside its own makes: both then lie in one repository."""
        return "path: ../" in self.files["params.yaml"].read_text(encoding="utf-8")

    @property
    def is_large(self) -> bool:
        """Whether its corpus is one of the hub's, whose cache has terabytes: its cost is looked at first."""
        params = yaml.safe_load(self.files["params.yaml"].read_text(encoding="utf-8"))
        return bool(params["corpus"]["source"] == "hub")

    @property
    def described_in(self) -> str:
        """The file of its own that begins with a comment on what the recipe is and needs."""
        return next(file for file, path in self.files.items() if path.parent.name == self.name)

    @property
    def description(self) -> str:
        """What it is, in one line."""
        with self.files[self.described_in].open(encoding="utf-8") as lines:
            return next(lines).removeprefix("#").strip()


def recipes() -> dict[str, Recipe]:
    """All recipes by name, the default first."""
    names = sorted(
        (folder.name for folder in RECIPES.iterdir() if folder.is_dir()), key=lambda name: (name != DEFAULT, name)
    )
    return {name: Recipe(name=name) for name in names}


def show_recipes() -> None:
    """Print what there is to choose from."""
    print_descriptions("recipes", {recipe.name: recipe.description for recipe in recipes().values()})
    click.echo("begin a project: pipeline init RECIPE --into FOLDER")


def initialise(name: str, folder: Path) -> None:
    """Write the files of the recipe called `name` into `folder`, which is made where there is none, and say what comes next.

    Raises `ConfigError` for an unknown name, and `InputError` for a folder that holds anything but `BESIDE`.
    """
    known = recipes()
    if name not in known:
        raise ConfigError(f"{name!r} is no recipe (`pipeline init` lists them); {suggest(name, known)}")
    _require_empty(folder)
    recipe = known[name]
    contents = {file: path.read_bytes() for file, path in recipe.files.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in contents.items():
        write_durably(folder / file, content)
    click.echo(
        f"wrote {', '.join(FILES)} of the recipe {name}; what it needs stands at the top of {recipe.described_in}"
    )
    click.echo("next: " + "; ".join(_next_commands(recipe, folder)))
    if shutil.which("dvc") is None:
        click.echo(
            "there is no dvc here: `pip install dvc`, or run the commands one by one, in the order of `pipeline --help`"
        )


def _require_empty(folder: Path) -> None:
    found = sorted(path.name for path in folder.iterdir() if path.name not in BESIDE) if folder.is_dir() else []
    if not found:
        return
    lost = [name for name in found if name in FILES]
    others = [name for name in found if name not in FILES]
    parts = [f"{', '.join(lost)} would be overwritten"] if lost else []
    if others:
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        parts.append(f"it holds {', '.join(others[:SHOWN])}{more}")
    raise InputError(f"{folder} is not empty: {'; '.join(parts)}; expected an empty folder, such as --into my-student")


def _next_commands(recipe: Recipe, folder: Path) -> Iterator[str]:
    here = folder.resolve().parent if recipe.needs_another_project else folder.resolve()
    around = [here, *here.parents]
    if here != Path.cwd():
        yield shlex.join(["cd", str(folder.parent if recipe.needs_another_project else folder)])
    repository = next((parent for parent in around if (parent / ".git").exists()), None)
    if repository is None:
        yield "git init"
    if not any((parent / ".dvc" / "config").exists() for parent in around):
        yield "dvc init" if repository in (None, here) else "dvc init --subdir"
    if recipe.is_large:
        yield from ("dvc repro teacher", "pipeline plan")
    yield (
        shlex.join(["dvc", "repro", f"{folder.resolve().name}/dvc.yaml"])
        if recipe.needs_another_project
        else "dvc repro"
    )
