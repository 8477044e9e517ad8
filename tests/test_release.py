"""What a release is made of agrees: versions, Pythons, dates; workflows are sound and call what exists."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from gpuconv.cli import main
from gpuconv.version import __version__

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
SUPPORTED = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text("utf-8"))


def parsed(path: Path):
    """A file of YAML; `on` is read as true, as the language has it."""
    yaml = pytest.importorskip("yaml", reason="pip install pyyaml to check YAML files")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(path: Path) -> list[dict]:
    return [step for job in parsed(path)["jobs"].values() for step in job["steps"]]


def test_one_version(capsys):
    """The command, the changelog's newest section, citation and conda recipe have the package's; dates agree."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gpuconv {__version__}\n"
    newest = re.search(r"^## \[(\d[^]]*)\] - (\d{4}-\d\d-\d\d)$", CHANGELOG, re.MULTILINE)
    assert newest is not None
    assert newest[1] == __version__
    recipe = (ROOT / ".github" / "conda" / "recipe.yaml").read_text(encoding="utf-8")
    assert f"\n  version: {__version__}\n" in recipe
    citation = parsed(ROOT / "CITATION.cff")
    assert (citation["version"], citation["date-released"]) == (__version__, newest[2])


def test_a_citation_is_complete():
    """What the format asks for is there."""
    citation = parsed(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert citation["authors"][0]["name"] == "The gpuconv developers"


def test_pythons_are_those_that_are_tested():
    """The classifiers are the matrix of the tests, begin with what is required, and have this Python."""
    matrix = parsed(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert matrix == SUPPORTED
    assert f'requires-python = ">={SUPPORTED[0]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'python_min: "{SUPPORTED[0]}"' in (ROOT / ".github" / "conda" / "recipe.yaml").read_text(encoding="utf-8")
    assert "{}.{}".format(*sys.version_info) in SUPPORTED


def test_the_conda_recipe_has_the_requirements():
    """Those of pyproject.toml, of the library and of the command, with the same bounds."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wanted = set()
    for block in (
        re.search(r"^dependencies = \[(.*?)^\]", text, re.M | re.S),
        re.search(r"^cli = \[(.*?)^\]", text, re.M | re.S),
    ):
        wanted |= set(re.findall(r'"([\w-]+)>=([\d.]+)"', block[1]))
    run = parsed(ROOT / ".github" / "conda" / "recipe.yaml")["requirements"]["run"]
    found = {tuple(one.replace("matplotlib-base", "matplotlib").split(" >=")) for one in run}
    assert found == wanted | {("python", "${{ python_min }}")}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows(path):
    """Permissions are given one by one, actions by their major version, each job has an end, targets of make exist."""
    workflow = parsed(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert set(workflow) <= {"name", True, "permissions", "jobs", "concurrency"}
    for name, job in workflow["jobs"].items():
        assert name == "publish" or job["timeout-minutes"] <= 120
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    if not (ROOT / "docs" / "website").exists():
        targets.add("docs")  # of a checkout without the site
    for step in steps(path):
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step["uses"]), step
            if step["uses"].startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
        for target in re.findall(r"\bmake ([a-z-]+)", step.get("run", "")):
            assert target in targets, target
        for file in re.findall(r"\bbash (\S+)", step.get("run", "")):
            assert (ROOT / file).exists(), file


def test_only_a_release_can_publish():
    """To PyPI by a tag alone, in an environment, without a secret; and no workflow knows one."""
    release = parsed(ROOT / ".github" / "workflows" / "release.yml")
    assert release[True] == {"push": {"tags": ["v*"]}}
    publish = release["jobs"]["publish"]
    assert (publish["permissions"], publish["environment"]) == ({"id-token": "write"}, "pypi")
    assert publish["needs"] == "build"
    for path in WORKFLOWS:
        text = path.read_text(encoding="utf-8")
        assert "secrets." not in text
        assert "pull_request_target" not in text
        assert path.stem == "release" or "gh-action-pypi-publish" not in text


def test_what_a_gpu_says_is_advice():
    """The job runs on a runner of one's own, never for a pull request, and may fail."""
    gpu = parsed(ROOT / ".github" / "workflows" / "gpu.yml")
    assert "pull_request" not in gpu[True]
    (job,) = gpu["jobs"].values()
    assert job["continue-on-error"] is True
    assert "self-hosted" in job["runs-on"]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms(path):
    """A form has a name, a description and fields, each with a label and a name of its own."""
    form = parsed(path)
    if path.stem == "config":
        assert form == {"blank_issues_enabled": True}
        return
    assert {"name", "description", "body"} <= set(form)
    names = [field["id"] for field in form["body"]]
    assert len(names) == len(set(names)) > 0
    for field in form["body"]:
        assert field["type"] in ("textarea", "dropdown", "input", "checkboxes")
        assert field["attributes"]["label"]
        assert field["type"] != "dropdown" or len(field["attributes"]["options"]) > 1


def test_typed_program_runs(capsys):
    """The program that `make lint` checks with a strict type checker is a program."""
    import runpy

    runpy.run_path(str(ROOT / "tests" / "support" / "typed_program.py"), run_name="__main__")
    assert "conv2.weight" in (shown := capsys.readouterr().out) or "Conv2d" in shown
