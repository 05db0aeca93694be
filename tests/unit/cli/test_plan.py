from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kilo.cli.plan import main
from tests.unit.test_conformance import CASES, without_order

NOW = 4102444800
KEYS = {name: f"{letter * 42}A=" for name, letter in (("a", "a"), ("b", "e"), ("p", "i"))}


def flags_of(case: dict[str, Any]) -> list[str]:
    """The command line that says what the ``config`` of a conformance case says."""
    config = case["config"]
    names = (
        "hostname",
        "mesh-granularity",
        "subnet",
        "port",
        "encapsulate",
        "compatibility",
        "topology-label",
    )
    flags = [f"--{name}={config[name.replace('-', '_')]}" for name in names]
    switches = ("local", "cni", "iptables-forward-rules")
    flags += [f"--{name}={str(config[name.replace('-', '_')]).lower()}" for name in switches]
    flags += [f"--service-cidr={cidr}" for cidr in config["service_cidrs"]]
    flags += [f"--connect-allowed-ips={cidr}" for cidr in config["connect_allowed_ips"]]
    return [*flags, "--at", str(case["now"])]


@pytest.mark.parametrize("case", CASES[::25], ids=lambda case: str(case["name"]))
def test_json_is_what_the_conformance_cases_expect(
    case: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write(tmp_path, nodes=case["nodes"], peers=case["peers"])
    key = tmp_path / "key"
    key.write_text(case["config"]["private_key"] + "\n")
    expected = case["expected"]
    status = main([*files, *flags_of(case), "--private-key", str(key), "-o", "json"])
    assert status == (0 if "topology" in expected else 1)
    printed = capsys.readouterr().out
    assert without_order(json.loads(printed)) == without_order(expected)
    assert printed == json.dumps(json.loads(printed), indent=2, sort_keys=True) + "\n"


def node(name: str, number: int, **annotations: str) -> dict[str, Any]:
    given = {
        "endpoint": f"203.0.113.{number}:51820",
        "key": KEYS.get(name, KEYS["a"]),
        "internal-ip": f"10.0.0.{number}/24",
        "last-seen": str(NOW),
        **{key.replace("_", "-"): value for key, value in annotations.items()},
    }
    named = {f"kilo.squat.ai/{key}": value for key, value in given.items() if value != "absent"}
    spec = {"podCIDR": f"10.2.{number}.0/24"}
    return {"kind": "Node", "metadata": {"name": name, "annotations": named}, "spec": spec}


PEER = {
    "kind": "Peer",
    "metadata": {"name": "p"},
    "spec": {"allowedIPs": ["10.5.0.1/32"], "publicKey": KEYS["p"]},
}
NODES = [node("a", 1), node("b", 2)]


def write(folder: Path, **lists: list[Any]) -> list[str]:
    """Flags for files that hold these objects, as kubectl prints them."""
    flags = []
    for name, items in lists.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        flags += [f"--{name}", str(path)]
    return flags


def run(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *flags: str,
    nodes: list[Any] = NODES,
    peers: list[Any] | None = None,
) -> tuple[int, str, str]:
    files = write(tmp_path, nodes=nodes) + (write(tmp_path, peers=peers) if peers is not None else [])
    status = main([*files, "--at", str(NOW), "--hostname", "a", *flags])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_wireguard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--mesh-granularity=full", "-o=wireguard")
    status, out, err = run(tmp_path, capsys, *flags, peers=[PEER])
    assert (status, err) == (0, "")
    assert out.startswith(
        "[Interface]\n# PrivateKey: give --private-key FILE\nListenPort = 51820\n\n[Peer]\n"
    )
    assert out.count("[Peer]") == 2
    key = tmp_path / "key"
    key.write_text(KEYS["b"] + "\n")
    _, out, _ = run(tmp_path, capsys, *flags, "--private-key", str(key))
    assert out.startswith(f"[Interface]\nPrivateKey = {KEYS['b']}\nListenPort = 51820\n")


def test_wireguard_of_a_node_that_does_not_lead_is_a_line_on_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [node("a", 1, location="x"), node("b", 2, location="x", leader="true")]
    status, out, err = run(tmp_path, capsys, "-o=wireguard", nodes=nodes)
    assert (status, out) == (0, "")
    assert err == (
        "kg plan: node a does not lead location:x, and has no WireGuard peers; node b leads it: "
        "give --hostname=b\n"
    )
    status, out, err = run(tmp_path, capsys, "-o=wireguard", "--hostname=b", nodes=nodes)
    assert (status, err) == (0, "")
    assert out.startswith("[Interface]\n")


@pytest.mark.parametrize("keepalive", ["65536", "-1", "99999999999999999999"])
def test_wireguard_with_a_keepalive_that_wg_refuses_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keepalive: str
) -> None:
    nodes = [node("a", 1, persistent_keepalive=keepalive), node("b", 2)]
    status, out, err = run(
        tmp_path, capsys, "--mesh-granularity=full", "-o=wireguard", nodes=nodes, peers=[PEER]
    )
    assert status == 0
    assert out.count("PersistentKeepalive = 0\n") == out.count("PersistentKeepalive") == 2
    assert "node a: annotation kilo.squat.ai/persistent-keepalive: " in err


def test_routes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(tmp_path, capsys, "-o", "routes", "--interface", "wg9", peers=[PEER])
    assert out.splitlines() == [
        "# ip route",
        "10.2.2.0/24 via 10.0.0.2 dev tunl0 src 10.0.0.1 onlink",
        "10.0.0.2/32 via 10.0.0.2 dev tunl0 table 1107 src 10.0.0.1 onlink",
        "10.5.0.1/32 dev wg9 src 10.0.0.1",
        "# ip rule",
        "from 10.2.1.0/24 to 10.0.0.2/32 lookup 1107",
        "from all to 10.0.0.2/32 iif wg9 lookup 1107",
    ]


def test_firewall(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(tmp_path, capsys, "-o", "firewall", "--service-cidr", "10.43.0.0/16", peers=[PEER])
    assert "masquerade_from:\n  10.2.1.0/24\n  10.5.0.1/32\n" in out
    assert "  10.43.0.0/16\n" in out
    assert out.endswith("IPIP packets: accepted from ipip_accept_from alone\n")
    _, out, _ = run(tmp_path, capsys, "-o", "firewall", "--encapsulate", "never")
    assert out.endswith("IPIP packets: not looked at\n")


def test_dot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(tmp_path, capsys, "-o", "dot", peers=[PEER])
    program = shutil.which("dot")
    assert program
    drawn = subprocess.run([program, "-Tplain"], input=out.encode(), capture_output=True, check=True)
    assert drawn.stdout.count(b"\nnode ") == 3


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(NODES),
        json.dumps(NODES[0]),
        json.dumps({"kind": "NodeList", "items": NODES}),
        "\ufeff" + json.dumps({"kind": "List", "items": NODES}),
        json.dumps([{key: n[key] for key in ("metadata", "spec")} for n in NODES]),
    ],
    ids=["array", "object", "NodeList", "byte order mark", "without kind"],
)
def test_every_form_that_holds_nodes_is_read(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "nodes.json"
    path.write_text(text)
    assert main(["--nodes", str(path), "--hostname", "a", "--at", str(NOW)]) == 0
    assert "a" in json.loads(capsys.readouterr().out)["ready_nodes"]


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ({"endpoint": "absent"}, "annotation kilo.squat.ai/endpoint: is not set"),
        ({"endpoint": "203.0.113.1"}, "annotation kilo.squat.ai/endpoint: '203.0.113.1' has no port"),
        ({"key": "absent"}, "annotation kilo.squat.ai/key: is not set"),
        ({"key": "YWJj"}, "annotation kilo.squat.ai/key: 3 bytes long, not 32"),
        ({"last_seen": "soon"}, "annotation kilo.squat.ai/last-seen: 'soon' is not a whole number"),
        (
            {"last_seen": str(NOW - 100)},
            "annotation kilo.squat.ai/last-seen: the node checked in 100 s before the time planned for",
        ),
    ],
)
def test_why_the_local_node_cannot_be_planned_for(
    annotations: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(tmp_path, capsys, nodes=[node("a", 1, **annotations), node("b", 2)])
    assert status == 1
    assert f"nothing can be planned for node a: {said}" in err.splitlines()[-1]
    assert json.loads(out) == {
        "error": "local node is not ready",
        "ready_nodes": ["b"],
        "ready_peers": [],
        "rejected_peers": [],
    }


def test_a_missing_pod_cidr_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(tmp_path, capsys, "-o", "dot", nodes=[{**node("a", 1), "spec": {}}])
    assert status == 1
    assert "node a: spec.podCIDR: the node has no pod CIDR" in err


def test_a_list_that_has_aged_says_how_to_plan_for_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = run(tmp_path, capsys, "--at", str(NOW + 9999))
    assert status == 1
    assert err.rstrip().endswith(f"--at {NOW} plans for when it last checked in")


def test_an_unknown_hostname_is_answered_with_those_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(tmp_path, capsys, "--hostname", "c", "-o", "routes")
    assert (status, out) == (1, "")
    assert err == "kg plan: no node is named 'c'; --hostname takes one of: a, b\n"
    many = [node(f"n{i}", 1) for i in range(100)]
    assert "and 70 more" in run(tmp_path, capsys, "--hostname", "c", nodes=many)[2]
    assert "holds none" in run(tmp_path, capsys, nodes=[])[2]


def test_a_subnet_that_is_too_small_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--subnet", "10.4.0.0/31", "--mesh-granularity", "full")
    status, out, err = run(tmp_path, capsys, *flags)
    assert status == 1
    assert "10.4.0.0/31 has 1 addresses for 2 segments" in err
    assert "topology" not in json.loads(out)


def test_who_is_left_out_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [
        node("a", 1, granularity="strange"),
        node("b", 2, endpoint="x"),
        node("a", 3),
        {"kind": "Node", "metadata": {"name": "c", "annotations": {"x": 1}}},
    ]
    broken = {**PEER, "metadata": {"name": "q"}, "spec": {"allowedIPs": "x"}}
    empty = {**PEER, "metadata": {"name": "r"}, "spec": {"allowedIPs": [], "publicKey": KEYS["p"]}}
    short = {**PEER, "metadata": {"name": "s"}, "spec": {"publicKey": "YWJj", "presharedKey": "x"}}
    status, out, err = run(tmp_path, capsys, nodes=nodes, peers=[PEER, PEER, broken, empty, short])
    assert status == 0
    assert json.loads(out)["ready_peers"] == ["p"]
    assert json.loads(out)["rejected_peers"] == ["q", "s"]
    for said in (
        "node a: annotation kilo.squat.ai/granularity: 'strange' is not one of location, full",
        "node b is left out: annotation kilo.squat.ai/endpoint: 'x' has no port",
        "node a is there twice",
        "Node c: metadata.annotations[...]: expected `str`, got `int`; it is left out",
        "Peer p is there twice",
        "Peer q: spec.allowedIPs: expected `array | null`, got `str`; it is left out",
        "Peer r is left out: spec.allowedIPs is empty",
        "Peer s: spec.publicKey: 3 bytes long, not 32; it is rejected",
    ):
        assert said in err, said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("apiVersion: v1\n", "is not a JSON list of Nodes"),
        ("", "is not a JSON list of Nodes"),
        ('{"items": 5}', "is not a JSON list of Nodes"),
        ("null", "is not a JSON list of Nodes"),
        (" [ ]\n", "is an empty array, and no List of Nodes"),
        ("{}", "is neither a List nor a Node"),
        (json.dumps([PEER]), "item 1 is a Peer, not a Node; it takes what kubectl get nodes -o json prints"),
        (json.dumps([*NODES[:1], 5]), "item 2 is not an object"),
        ('{"kind": "Pod", "metadata": {"name": "x"}}', "item 1 is a Pod, not a Node"),
        ('{"kind": "PodList", "items": [{"metadata": {"name": "x"}}]}', "is a PodList, not a List of Nodes"),
        ('{"kind": "PeerList", "items": []}', "is a PeerList, not a List of Nodes"),
    ],
)
def test_a_file_that_holds_no_nodes(
    content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    assert main(["--nodes", str(path)]) == 2
    err = capsys.readouterr().err
    assert f"kg plan: --nodes {path}" in err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--nodes FILE is missing"),
        (["--nodes", "/nonexistent"], "--nodes /nonexistent: No such file or directory"),
        (["--nodes", "/"], "--nodes /: Is a directory"),
        (["--nodes", "-", "--peers", "-"], "cannot both be standard input"),
        (["--nodes", "x", "y"], "'y' is not expected here"),
        (["--nodes", "x", "-o", "yaml"], "'yaml' is not allowed; allowed: json, wireguard"),
        (["--nodes", "x", "--at", "soon"], "--at: 'soon' is not allowed"),
        (["--nodes", "x", "--subnet", "10"], "--subnet: '10' is not allowed"),
        (["--nodes", "x", "--connect-allowed-ips", "10"], "--connect-allowed-ips: '10' is not allowed"),
        (["--nodes", "x", "--nonsense"], "unknown flag --nonsense;"),
        (["--nodes", "x", "-hostnam=x"], "unknown flag -hostnam (is --hostname meant?)"),
        (["--nodes", "x", "--private-key", "/nonexistent"], "--private-key /nonexistent: No such file"),
    ],
)
def test_a_bad_command_line(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("content", [b"hunter2", b"hunter2" * 7, "hunter2é".encode(), b"\xffhunter2"])
def test_a_key_file_is_never_quoted(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key"
    key.write_bytes(content)
    status, out, err = run(tmp_path, capsys, "--private-key", str(key))
    assert (status, out) == (2, "")
    assert f"--private-key {key} is not a WireGuard key" in err
    assert "hunter2" not in err


def test_flags_come_from_the_environment_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KILO_MESH_GRANULARITY", "full")
    _, out, _ = run(tmp_path, capsys)
    assert json.loads(out)["topology"]["location"] == "node:a"


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "--connect-allowed-ips" in out
    assert "--mesh-granularity" in out


def test_standard_input_and_no_needless_import(tmp_path: Path) -> None:
    """As a person runs it; what would make it slow or need privilege stays out."""
    code = (
        "import sys; from kilo.cli.plan import main; status = main(sys.argv[1:]);"
        "heavy = {'zmq', 'pyroute2', 'kubernetes', 'urllib3', 'tenacity', 'prometheus_client', 'iptc'};"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr); sys.exit(status)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "--nodes", "-", "--hostname", "b", "--at", str(NOW), "-o", "dot"],
        input=json.dumps(NODES).encode(),
        capture_output=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert (result.returncode, result.stderr) == (0, b"[]\n")
    assert result.stdout.startswith(b"digraph kilo {")


def test_what_two_claim_at_once_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [node("a", 1), node("b", 2, location="x"), node("c", 3, location="y", key=KEYS["b"])]
    nodes[2]["spec"]["podCIDR"] = nodes[0]["spec"]["podCIDR"]
    status, _, err = run(tmp_path, capsys, "-o", "routes", nodes=nodes)
    assert status == 0
    assert f"node b and node c have the same public key {KEYS['b']}; the first counts" in err
    nodes[2]["metadata"]["annotations"]["kilo.squat.ai/key"] = KEYS["p"]
    status, _, err = run(tmp_path, capsys, "-o", "routes", nodes=nodes)
    assert status == 0
    assert f"claim {nodes[0]['spec']['podCIDR']}; the first counts" in err


def test_networks_and_endpoints_that_are_refused_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = {**PEER, "spec": {"allowedIPs": ["0.0.0.0/0"], "publicKey": KEYS["p"]}}
    nodes = [node("a", 1), node("b", 2, location="x", endpoint="0.0.0.0:51820")]
    status, _, err = run(tmp_path, capsys, "-o", "routes", nodes=nodes, peers=[wide])
    assert status == 0
    assert "peer p claims 0.0.0.0/0: 0.0.0.0/0 is as wide as a default route" in err
    assert "the endpoint 0.0.0.0:51820 of node b is not used" in err


def test_the_other_end_of_a_peer_as_operations_md_says(tmp_path: Path) -> None:
    """The command as it stands there, after its two lines of kubectl."""
    text = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    block = text.partition("## The other end of a Peer")[2].split("```")[1].replace("NODE", "a")
    first, second, command = block.strip().split("\n", 2)
    assert all(line.startswith("kubectl get ") for line in (first, second))
    laptop = {**PEER, "metadata": {"name": "laptop"}}
    write(tmp_path, nodes=NODES, peers=[laptop])
    places = f'kg() {{ {sys.executable} -m kilo "$@" --at={NOW} --mesh-granularity=full; }}\n'
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        ["sh", "-c", places + command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stderr == ""
    sections = done.stdout.strip().split("\n\n")
    assert len(sections) == len(NODES)
    for section, node_name in zip(sections, "ab", strict=True):
        assert section.startswith("[Peer]\nAllowedIPs = ")
        assert f"PublicKey = {KEYS[node_name]}" in section
        assert "Endpoint = " in section
