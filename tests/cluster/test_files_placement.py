"""Which machine each teacher of the example run brings up: asked of Ray's own autoscaler, which starts nothing."""

import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest
from ray._common.utils import resources_from_ray_options
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.util.accelerators import accelerators

import muki_ray
from muki_ray.config import IntegrateConfig, load_config
from tests.cluster.shipped import CLUSTER, KUBERAY, RAY_UP, ROOT, document, ray_cluster

README = (CLUSTER / "README.md").read_text()
KNOWN = {value for name, value in vars(accelerators).items() if name.isupper()}


@cache
def machines(name: str) -> AutoscalingConfig:
    """A file as Ray's autoscaler sees it."""
    config = _derive_autoscaling_config_from_ray_cr(ray_cluster(name)) if name in KUBERAY else document(name)
    return AutoscalingConfig(config, skip_content_hash=True)


def brought_up(name: str, **options: object) -> list[str]:
    """The machines that an empty cluster starts for one actor or task with these options."""
    config = machines(name)
    demand = ResourceRequestUtil.make(resources_from_ray_options(options))
    reply = ResourceDemandScheduler(None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count([demand]),
        )
    )
    assert len(reply.to_launch) + len(reply.infeasible_resource_requests) == 1
    return [launch.instance_type for launch in reply.to_launch for _ in range(launch.count)]


def run_for(name: str, folder: Path) -> IntegrateConfig:
    """The example run, made to fit a file as the README says."""
    if name in KUBERAY:
        return load_config(str(CLUSTER / "integrate.yaml"))
    line = re.search(
        rf"^(sed -e .* cluster/integrate\.yaml) > {name.removesuffix('.yaml')}-run\.yaml$", README, re.M
    )
    assert line, f"the README does not say how to make a run for {name}"
    made = folder / "run.yaml"
    made.write_bytes(subprocess.run(shlex.split(line[1]), cwd=ROOT, check=True, capture_output=True).stdout)
    return load_config(str(made))


@pytest.mark.parametrize("name", [*KUBERAY, *RAY_UP])
def test_every_teacher_and_the_student_get_their_kind_of_machine(name: str, tmp_path: Path) -> None:
    run = run_for(name, tmp_path)
    kinds = machines(name).get_node_type_configs()
    used = set()
    for wanted in (*(teacher.resources for teacher in run.teachers), run.training):
        assert wanted.accelerator_type in KNOWN
        assert wanted.num_cpus and wanted.num_gpus, "an empty cluster gives nothing to plan the defaults from"
        (kind,) = brought_up(
            name,
            num_cpus=wanted.num_cpus,
            num_gpus=wanted.num_gpus,
            accelerator_type=wanted.accelerator_type,
        )
        assert f"accelerator_type:{wanted.accelerator_type}" in kinds[kind].resources
        used.add(kind)
    assert used == {kind for kind, settings in kinds.items() if settings.resources.get("GPU")}
    assert len(used) == 2 and len(run.teachers) >= 6
    for teacher in run.teachers:
        assert teacher.resources.max_actors is not None


@pytest.mark.parametrize("name", [*KUBERAY, *RAY_UP])
def test_light_work_brings_up_no_gpu_and_nothing_runs_on_the_head(name: str) -> None:
    assert brought_up(name, num_cpus=0.1) == ["cpu"]


@pytest.mark.parametrize("name", [*KUBERAY, *RAY_UP])
def test_a_kind_that_no_machine_has_brings_up_nothing(name: str) -> None:
    assert brought_up(name, num_cpus=1, num_gpus=1, accelerator_type="a100") == []
    assert brought_up(name, num_cpus=1, num_gpus=64) == []


@pytest.mark.parametrize("name", [*KUBERAY, *RAY_UP])
def test_groups_carry_names_that_ray_knows(name: str) -> None:
    types = [
        resource.partition(":")[2]
        for settings in machines(name).get_node_type_configs().values()
        for resource in settings.resources
        if resource.startswith("accelerator_type")
    ]
    assert len(types) == len(set(types)) == 2 and set(types) <= KNOWN


def test_a_run_in_a_bucket_has_nothing_on_a_disk(tmp_path: Path) -> None:
    for name, scheme in (("aws.yaml", "s3://"), ("gcp.yaml", "gs://")):
        run = run_for(name, tmp_path)
        places = [
            run.output,
            run.student.model,
            *run.corpus.path,
            *(teacher.model for teacher in run.teachers),
        ]
        assert all(place.startswith(scheme) for place in places)


def test_the_readme_names_files_and_images_that_exist() -> None:
    named = set(re.findall(r"(?<![\w/-])(?:cluster|jobs)/[\w./-]+\w", README))
    assert {"cluster/Dockerfile", "cluster/integrate.yaml", "jobs/integrate.py"} <= named
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert set(re.findall(r"muki-ray:([\d.]+)-", README)) == {muki_ray.__version__}
    assert {path.name for path in CLUSTER.iterdir()} - {"README.md"} <= set(
        re.findall(r"`([\w.-]+)`", README)
    )


def test_the_readmes_way_to_name_a_registry_reaches_every_image(tmp_path: Path) -> None:
    line = re.search(r'^sed -i "(s#.*#)" cluster/\*\.yaml$', README, re.M)
    assert line
    for file in CLUSTER.glob("*.yaml"):
        command = ["sed", line[1].replace("$REGISTRY", "here/there"), str(file)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert re.findall(r"(?<!here/there/)muki-ray:\d", text) == []
        assert text.count("here/there/muki-ray:") == file.read_text().count(
            f"muki-ray:{muki_ray.__version__}"
        )
