"""The fields of KubeRay's and Kubernetes' resources that the shipped files use, as JSON schemas.

A part of the whole on purpose: a field that is not named here is refused until somebody looked it up. Where values are
free text in the operator's own schema (`submissionMode`), these name the ones that it knows.
"""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|[kMGT]|[KMGT]i)?$"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
QUANTITIES: Schema = {"type": "object", "additionalProperties": QUANTITY}


def some(*fields: str, **known: Schema) -> Schema:
    """A mapping with no other fields than these; the ones in `fields` must be there."""
    return {
        "type": "object",
        "properties": known,
        "required": list(fields),
        "additionalProperties": False,
    }


def many(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


RESOURCES = some("requests", "limits", requests=QUANTITIES, limits=QUANTITIES)
LOCKED = some(
    "allowPrivilegeEscalation",
    "capabilities",
    allowPrivilegeEscalation=FLAG,
    capabilities=some("drop", drop=many(TEXT)),
)
SECRET = some("name", name=TEXT, optional=FLAG)
CONTAINER = some(
    "name",
    "image",
    "resources",
    "securityContext",
    name=TEXT,
    image=TEXT,
    command=many(TEXT),
    ports=many(some("name", "containerPort", name=TEXT, containerPort=COUNT)),
    env=many(some("name", "value", name=TEXT, value=TEXT)),
    envFrom=many(some("secretRef", secretRef=SECRET)),
    resources=RESOURCES,
    securityContext=LOCKED,
    volumeMounts=many(some("name", "mountPath", name=TEXT, mountPath=TEXT)),
)
POD = some(
    "containers",
    "securityContext",
    containers=many(CONTAINER),
    securityContext=some(
        runAsNonRoot=FLAG,
        runAsUser=COUNT,
        runAsGroup=COUNT,
        fsGroup=COUNT,
        seccompProfile=some("type", type=one_of("RuntimeDefault")),
    ),
    automountServiceAccountToken=FLAG,
    restartPolicy=one_of("Never"),
    nodeSelector=TEXTS,
    tolerations=many(
        some(
            "key",
            "operator",
            "effect",
            key=TEXT,
            operator=one_of("Exists", "Equal"),
            effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
        )
    ),
    volumes=many(some("name", name=TEXT, persistentVolumeClaim=some("claimName", claimName=TEXT))),
)
TEMPLATE = some("spec", spec=POD)
CLUSTER_SPEC = some(
    "rayVersion",
    "headGroupSpec",
    "workerGroupSpecs",
    "authOptions",
    rayVersion=TEXT,
    authOptions=some("mode", mode=one_of("token", "disabled")),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=some(
        "version",
        version=one_of("v1", "v2"),
        upscalingMode=one_of("Default", "Aggressive", "Conservative"),
        idleTimeoutSeconds=COUNT,
        securityContext=LOCKED,
        resources=RESOURCES,
    ),
    headGroupSpec=some("template", "rayStartParams", template=TEMPLATE, rayStartParams=TEXTS),
    workerGroupSpecs=many(
        some(
            "groupName",
            "template",
            "rayStartParams",
            "minReplicas",
            "maxReplicas",
            groupName=TEXT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template=TEMPLATE,
        )
    ),
)
JOB_SPEC = some(
    "entrypoint",
    "rayClusterSpec",
    entrypoint=TEXT,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    submitterPodTemplate=TEMPLATE,
    rayClusterSpec=CLUSTER_SPEC,
    backoffLimit=COUNT,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    activeDeadlineSeconds=COUNT,
)
CLAIM_SPEC = some(
    "accessModes",
    "resources",
    accessModes=many(one_of("ReadWriteMany")),
    storageClassName=TEXT,
    resources=some("requests", requests=QUANTITIES),
)


def _resource(version: str, kind: str, spec: Schema) -> Schema:
    parts = {"apiVersion": one_of(version), "kind": one_of(kind), "metadata": some("name", name=TEXT)}
    return some("apiVersion", "kind", "metadata", "spec", **parts, spec=spec)


SCHEMAS: dict[str, Schema] = {
    "RayJob": _resource("ray.io/v1", "RayJob", JOB_SPEC),
    "RayCluster": _resource("ray.io/v1", "RayCluster", CLUSTER_SPEC),
    "PersistentVolumeClaim": _resource("v1", "PersistentVolumeClaim", CLAIM_SPEC),
    "Pod": _resource("v1", "Pod", POD),
}
_VALIDATORS = {kind: Draft202012Validator(schema) for kind, schema in SCHEMAS.items()}


def complaints(manifest: dict[str, Any]) -> list[str]:
    """What is wrong with a manifest: where, and what."""
    return [
        f"{error.json_path}: {error.message}" for error in _VALIDATORS[manifest["kind"]].iter_errors(manifest)
    ]
