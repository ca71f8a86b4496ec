"""The files for `ray up`, by Ray's own validation, and what that does not look at."""

import copy
from typing import Any

import pytest
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

from tests.cluster.shipped import KUBERAY, RAY_UP, document, pod_specs

pytestmark = pytest.mark.parametrize("name", RAY_UP)


def check(config: dict[str, Any]) -> None:
    """What `ray up` does before it talks to a cloud."""
    validate_config(prepare_config(copy.deepcopy(config)))


def test_ray_accepts_it(name: str) -> None:
    check(document(name))


def test_a_typo_in_a_field_is_noticed(name: str) -> None:
    config = document(name)
    # in `node_config` and `file_mounts` anything goes
    typos = [(config, key) for key in config]
    typos += [(kind, key) for kind in config["available_node_types"].values() for key in kind]
    typos += [(config["docker"], key) for key in config["docker"]]
    assert len(typos) > 25
    for node, key in typos:
        value = node.pop(key)
        node[f"{key}s"] = value
        with pytest.raises((ValidationError, KeyError, ValueError, AssertionError)):
            check(config)
        del node[f"{key}s"]
        node[key] = value
    check(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_workers", "many"), ("head_node_type", "nobody"), ("idle_timeout_minutes", "soon")],
)
def test_a_wrong_value_is_noticed(name: str, key: str, value: Any) -> None:
    with pytest.raises((ValidationError, ValueError)):
        check({**document(name), key: value})


def test_machines_come_and_go(name: str) -> None:
    config = document(name)
    kinds = config["available_node_types"]
    workers = {key: kind for key, kind in kinds.items() if key != config["head_node_type"]}
    assert all(
        kind["min_workers"] == 0 < kind["max_workers"] <= config["max_workers"] for kind in workers.values()
    )
    assert 0 < config["idle_timeout_minutes"] <= 10
    assert kinds[config["head_node_type"]]["resources"] == {"CPU": 0}
    types = [
        kind["node_config"].get("InstanceType") or kind["node_config"]["machineType"]
        for kind in kinds.values()
    ]
    gpus = [one for one, kind in zip(types, kinds.values(), strict=True) if kind["resources"].get("GPU")]
    assert len(gpus) == len(set(gpus)) == 2


def test_every_node_runs_the_image_of_its_kind(name: str) -> None:
    """The one that Ray picks for it; GPU machines must not start without a GPU."""
    config = AutoscalingConfig(document(name), skip_content_hash=True)
    kubernetes = {c["image"] for file in KUBERAY for _, pod in pod_specs(file) for c in pod["containers"]}
    seen = set()
    for kind, settings in config.get_node_type_configs().items():
        docker = config.get_docker_config(kind)
        gpu = settings.resources.get("GPU", 0) > 0
        assert docker["image"].endswith("-gpu" if gpu else "-cpu")
        assert ("--gpus all" in docker.get("worker_run_options", [])) is gpu
        seen.add(docker["image"])
    assert seen == kubernetes
    # nothing is installed on top: Ray's defaults would fetch a nightly build
    for commands in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert config.get_config(commands) == []


def test_all_nodes_ask_for_the_same_token(name: str) -> None:
    config = document(name)
    options = config["docker"]["run_options"]
    assert "--env RAY_AUTH_MODE=token" in options
    path = next(o.split("=", 1)[1] for o in options if o.startswith("--env RAY_AUTH_TOKEN_PATH="))
    assert config["file_mounts"] == {path: "~/.ray/auth_token"}
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert any("ray start" in command for command in config[commands])
        assert not any("RAY_AUTH" in command for command in config[commands])
