"""Checks of the way to the Kubernetes API, with the agent's own configuration: what it may do there, and the
clock. Nothing is changed: the patch is a dry run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from kilo.config import Config
from kilo.doctor.finding import Finding
from kilo.errors import KiloError
from kilo.watcher.client import Api, ApiError

SKEW = 10.0
"""Seconds that clocks may differ: Go agents drop a node whose last-seen is 60 s old."""
NODES = "/api/v1/nodes"
PEERS = "/apis/kilo.squat.ai/v1alpha1/peers"


def checks(config: Config) -> Iterator[Finding]:
    """What the watcher will need of the API."""
    try:
        api = Api(config.kubeconfig, config.master)
    except KiloError as e:
        yield Finding("api", "fail", str(e), "give a --kubeconfig that can be read, or --master")
        return
    try:
        yield from _asked(api, config)
    finally:
        api.close()


def _asked(api: Api, config: Config) -> Iterator[Finding]:
    name = config.hostname
    try:
        body = api.get(NODES, {"fieldSelector": f"metadata.name={name}", "limit": "1"}, "list nodes")
    except ApiError as e:
        yield Finding("api", "fail", str(e), _mend(e, api))
        return
    yield Finding("api", "ok", f"{api.server} lets the agent list nodes")
    if b'"uid"' not in body:
        mend = "give the name of its Node object by --hostname"
        yield Finding("node", "fail", f"the cluster has no node {name}", mend)
    else:
        yield _patched(api, name)
    yield _peers(api)
    yield _clock(api)


def _mend(error: ApiError, api: Api) -> str:
    """What to do about a request that failed."""
    if error.mend:
        return error.mend
    if error.status:
        return f"see the log of {api.server}, or of what answers in its place"
    return f"see that {api.server} can be reached from this host"


def _patched(api: Api, name: str) -> Finding:
    try:
        nothing: dict[str, Any] = {"metadata": {"annotations": {}}}
        api.patch(f"{NODES}/{quote(name)}?dryRun=All", nothing, f"patch node {name}")
    except ApiError as e:
        return Finding("node", "fail", str(e), _mend(e, api))
    return Finding("node", "ok", f"the agent may patch node {name}")


def _peers(api: Api) -> Finding:
    try:
        api.get(PEERS, {"limit": "1"}, "list peers")
    except ApiError as e:
        if e.status == 404:
            mend = "kubectl apply -f deploy/crds.yaml, if there are to be Peers"
            return Finding("peers", "warn", "the cluster does not define Peers", mend)
        return Finding("peers", "fail", str(e), _mend(e, api))
    return Finding("peers", "ok", "the agent may list peers")


def _clock(api: Api) -> Finding:
    try:
        before = time.time()
        theirs = api.clock(NODES, {"limit": "1"}, "list nodes")
        ours = (before + time.time()) / 2
    except ApiError as e:
        return Finding("clock", "unknown", str(e))
    if theirs is None:
        return Finding("clock", "unknown", "the API server does not say what time it is")
    if abs(ours - theirs) <= SKEW:
        return Finding("clock", "ok", f"it is within {SKEW:g} s of the API server's")
    found = f"it is {abs(ours - theirs):.0f} s {'ahead of' if ours > theirs else 'behind'} the API server's"
    return Finding("clock", "fail", found, "set the clock, by chrony or systemd-timesyncd")
