"""The image: pinned, not root, with all that the entrypoint names."""

import re
import shlex
import tomllib

import pytest

import muki_ray
from muki_ray.config import load_config
from tests.cluster.shipped import CLUSTER, ROOT, dockerfile, document, in_context, in_image


def problems(text: str | None = None) -> list[str]:
    """What a Dockerfile of this project must not do."""
    instructions = dockerfile(text)
    stages = {one.stage for one in instructions if one.stage}
    found = []
    for one in instructions:
        if one.name == "FROM":
            image = one.text.split()[0]
            tag = image.partition(":")[2]
            if re.sub(r"\$\{VARIANT\}", "cpu", image) not in stages and not re.fullmatch(
                r"\d+\.\d+\.\d+-[\w.-]+", tag
            ):
                found.append(f"{image}: not an exact tag")
        installs = re.findall(r"pip install [^&]*", one.text)
        found += [
            f"{install}: without constraints.txt"
            for install in installs
            if "-c constraints.txt" not in install
        ]
        if one.name == "ADD":
            found.append("ADD may fetch from anywhere")
        if "apt-get install" in one.text and "rm -rf /var/lib/apt/lists" not in one.text:
            found.append("package lists stay in the layer")
    users = [one.text for one in instructions if one.name == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
        found.append(f"ends as user {users[-1:]}")
    return found


def test_the_image_is_pinned_and_not_root() -> None:
    assert problems() == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("python:3.11.14-slim-bookworm", "python:3.11-slim"),
        ("python:3.11.14-slim-bookworm", "python"),
        ("pip install -c constraints.txt torch", "pip install torch"),
        ("USER 1000:1000", "USER root"),
        ("USER 1000:1000\n", ""),
        (" && rm -rf /var/lib/apt/lists/*", ""),
    ],
)
def test_a_slip_would_be_noticed(before: str, after: str) -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    assert before in text
    # a line that is gone must not leave its continuation behind
    assert problems(text.replace(f"{before} \\\n", f"{after} \\\n").replace(before, after))


def test_python_is_the_one_that_the_project_is_checked_with() -> None:
    base = next(one.text for one in dockerfile() if one.name == "FROM")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert base.startswith(f"python:{settings['tool']['mypy']['python_version']}.")
    assert settings["project"]["version"] == muki_ray.__version__


def test_both_variants_end_in_one_image_that_imports_the_package() -> None:
    instructions = dockerfile()
    stages = [one.stage for one in instructions if one.name == "FROM"]
    assert {"torch-cpu", "torch-gpu"} < set(stages) and stages[-1] == "muki-ray"
    last = [one.text for one in instructions if one.stage == "muki-ray"]
    assert last[0] == "torch-${VARIANT} AS muki-ray"
    check = next(i for i, text in enumerate(last) if 'python -c "import muki_ray"' in text)
    assert check > last.index("1000:1000")  # by the user that will run it
    extras = re.search(r'pip install -c constraints.txt "\.\[([\w,]+)\]"', " ".join(last))
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras and set(extras[1].split(",")) <= set(known)


def test_what_is_copied_exists_and_reaches_the_build() -> None:
    for source in in_image().values():
        assert source.exists(), source
        assert in_context(source.relative_to(ROOT).as_posix()), source
    for private in (
        ".git/config",
        ".venv/bin/python",
        "runs/demo/config.yaml",
        "tests/tiny.py",
        "muki_ray/__pycache__",
    ):
        assert not in_context(private), private


def test_the_job_starts_what_is_in_the_image_and_writes_to_the_shared_volume() -> None:
    python, script, config, *overrides = shlex.split(document("kuberay-rayjob.yaml")["spec"]["entrypoint"])
    image = in_image()
    folder = script.rpartition("/jobs/")[0]
    assert python == "python"
    assert (
        (image[f"{folder}/jobs"] / script.rpartition("/")[2])
        .read_text()
        .startswith('"""`python jobs/integrate.py')
    )
    run = load_config(str(image[config]), overrides)
    places = [run.output, run.student.model, *run.corpus.path, *(teacher.model for teacher in run.teachers)]
    assert all(place.startswith("/shared/") for place in places)
