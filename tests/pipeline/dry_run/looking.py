"""What a dry run says; that it writes nothing is looked at every time."""

import json

from click.testing import CliRunner

from pipeline.cli import cli


def everything_in(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def results_of_dry_run(folder, command, *arguments):
    """Its results as `--json` gives them."""
    before = everything_in(folder)
    as_json = ["--json", "-"] if command == "compare" else ["--json"]
    done = CliRunner().invoke(cli, [command, *arguments, "--dry-run", *as_json, "--project", str(folder)])
    assert done.exit_code == 0, done.output
    assert everything_in(folder) == before
    return json.loads(done.stdout)["results"]


def dry(folder, command, *arguments):
    """The rows of all its summaries."""
    results = results_of_dry_run(folder, command, *arguments)
    return {name: value for result in results if "columns" not in result for name, value in result["rows"].items()}


def pipeline(project, *arguments):
    """Run a command, which must go well."""
    done = CliRunner().invoke(cli, [*arguments, "--project", str(project.folder)])
    assert done.exit_code == 0, done.output
